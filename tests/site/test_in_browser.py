"""The built site in a browser: accessibility, the keyboard, and no request that leaves it."""

from __future__ import annotations

import pytest

VIEWPORTS = {"wide": {"width": 1280, "height": 900}, "narrow": {"width": 390, "height": 844}}


@pytest.fixture(scope="module", params=[(t, v) for t in ("light", "dark") for v in VIEWPORTS])
def tab(request, browser, server):
    """A browser tab in one theme and size; `tab.left` lists the requests that leave the site."""
    theme, size = request.param
    context = browser.new_context(color_scheme=theme, viewport=VIEWPORTS[size])
    tab = context.new_page()
    tab.left, tab.failed = [], []

    # Listened to rather than intercepted, which would be slower and switch the browser's cache off.
    here = (server, "data:", "blob:")
    tab.on("request", lambda r: r.url.startswith(here) or tab.left.append(r.url))
    tab.on("pageerror", lambda error: tab.failed.append(str(error)))
    tab.on("response", lambda r: tab.failed.append(f"{r.status} {r.url}") if r.status > 399 else 0)
    tab.theme, tab.narrow = theme, size == "narrow"
    yield tab
    context.close()


def visit(tab, address: str) -> None:
    tab.left.clear()
    tab.failed.clear()
    tab.goto(address, wait_until="load")


def test_page_is_whole_and_accessible(tab, server: str, axe: str, page: str) -> None:
    visit(tab, server + page)
    assert tab.evaluate("document.documentElement.dataset.theme") == tab.theme
    assert not tab.left, "requests that leave the site"
    assert not tab.failed
    wider = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wider <= 0, f"the page is {wider} px wider than its window"
    tab.evaluate(axe)
    # Without the names of all that passes the rules, which take most of the time.
    result = tab.evaluate("axe.run({resultTypes: ['violations']})")
    assert result["passes"]
    assert not [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in result["violations"]
    ]


@pytest.mark.parametrize(
    "name", ["index.html", "how_it_works.html", "guide/which_method.html", "guide/limits.html"]
)
def test_tables_fit_into_the_page(tab, server: str, name: str) -> None:
    visit(tab, server + name)
    boxes = tab.locator(".pst-scrollable-table-container")
    wider = boxes.evaluate_all("boxes => boxes.map(box => box.scrollWidth - box.clientWidth)")
    assert wider
    assert max(wider) <= 0


def test_one_figure_of_each_pair_is_shown(tab, server: str, tutorial: str) -> None:
    visit(tab, server + tutorial)
    figures = tab.locator("img.mcbn-figure")
    shown = tab.locator("img.mcbn-figure:visible")
    assert shown.count() * 2 == figures.count() > 0
    for index in range(shown.count()):
        assert f"only-{tab.theme}" in shown.nth(index).get_attribute("class")
        shown.nth(index).scroll_into_view_if_needed()
        drawn = "image => image.decode().then(() => image.naturalWidth / image.clientWidth)"
        assert shown.nth(index).evaluate(drawn) >= 1.5, "not sharp on a HiDPI screen"


# The elements whose computed style differs when the sheets that were joined, and rid of what no
# page uses, stand there as they came.
RESTYLED = """async () => {
    document.head.append(Object.assign(document.createElement("style"),
        { textContent: "*, ::before, ::after { transition: none !important; }" }));
    const elements = [...document.body.querySelectorAll("*")];
    const names = [...getComputedStyle(document.body)].filter((name) => !name.startsWith("--"));
    const styles = () => elements.map((element) => {
        const style = getComputedStyle(element);
        return names.map((name) => style.getPropertyValue(name)).join(";");
    });
    const joined = styles();
    const link = document.querySelector("link[data-sheets]");
    const folder = link.href.split("site-")[0];
    await Promise.all(link.dataset.sheets.split(" ").map((name) => new Promise((done) => {
        const sheet = document.createElement("link");
        Object.assign(sheet, { rel: "stylesheet", href: folder + name, onload: done });
        link.before(sheet);
    })));
    link.remove();
    const apart = styles();
    return elements.filter((_, i) => joined[i] !== apart[i]).map((e) => e.outerHTML.slice(0, 150));
}"""


@pytest.mark.parametrize("name", ["index.html", "api/generated/mcbn.MCBatchNorm.html"])
def test_one_stylesheet_does_what_all_did(tab, server: str, name: str) -> None:
    visit(tab, server + name)
    assert tab.locator("link[rel=stylesheet]").count() == 1
    assert tab.evaluate(RESTYLED) == []


# How many icons the page has, and those of them that look otherwise than in their whole font.
ICONS = """async () => {
    const fonts = `${document.documentElement.dataset.content_root}_static/vendor/fontawesome/`;
    const source = `url(${fonts}webfonts/fa-solid-900.woff2)`;
    document.fonts.add(await new FontFace("whole", source, { weight: 900 }).load());
    await document.fonts.ready;
    const drawn = (icon, font) => {
        const context = document.createElement("canvas").getContext("2d");
        context.font = `900 40px ${font}`;
        context.fillText(icon, 10, 50);
        return context.canvas.toDataURL();
    };
    const icons = new Map();
    for (const element of document.body.querySelectorAll("*"))
        for (const side of ["::before", "::after"]) {
            const style = getComputedStyle(element, side);
            const icon = style.content.match(/[\\ue000-\\uf8ff]/)?.[0];
            if (icon) icons.set(icon, style.fontFamily);
        }
    return [icons.size, [...icons].filter(([icon, font]) =>
        drawn(icon, font) !== drawn(icon, "whole")
    ).map(([icon]) => icon.codePointAt().toString(16))];
}"""


@pytest.mark.parametrize("name", ["index.html", "draw_a_digit.html", "guide/which_method.html"])
def test_icons_come_with_the_stylesheet(tab, server: str, name: str) -> None:
    asked = []
    tab.on("request", listener := lambda request: asked.append(request.url))
    visit(tab, server + name)
    tab.evaluate("document.fonts.ready")
    tab.remove_listener("request", listener)
    assert not [url for url in asked if url.startswith(server) and ".woff" in url]
    count, different = tab.evaluate(ICONS)
    assert count > 5
    assert not different


FOCUSED = """() => {
    const element = document.activeElement;
    // The theme draws a summary as a box of no size with its arrow in it.
    const drawn = element.matches("li > details > summary") ? element.firstElementChild
        : element;
    const style = getComputedStyle(drawn), box = drawn.getBoundingClientRect();
    return {
        tag: element.tagName,
        name: [element.ariaLabel, element.textContent, element.title, element.placeholder,
            element.querySelector("img")?.alt].map((text) => text?.trim()).find(Boolean),
        kinds: [...element.classList, ...element.parentElement.classList],
        target: element.getAttribute("href") || "",
        marked: style.outlineStyle !== "none" || style.boxShadow !== "none",
        seen: drawn.checkVisibility({ opacityProperty: true }) && box.width * box.height > 0,
    };
}"""


def stops(tab) -> list[dict]:
    """Where the Tab key leads to, from the top of the page to its end."""
    found = []
    while len(found) < 500:
        tab.keyboard.press("Tab")
        found.append(tab.evaluate(FOCUSED))
        if found[-1]["tag"] == "BODY":
            return found[:-1]
    raise AssertionError("the keyboard never gets to the end of the page")


TUTORIAL = "auto_tutorials/Bayesian_Methods/tutorial_mc_batch_norm.html"
GALLERY = "auto_tutorials/index.html"


@pytest.mark.parametrize("name", ["index.html", TUTORIAL, GALLERY, "guide/metrics.html"])
def test_the_keyboard_leads_through_the_page(tab, server: str, name: str) -> None:
    visit(tab, server + name)
    found = stops(tab)
    assert found[0]["name"] == "Skip to main content"
    for stop in found:
        assert stop["seen"], f"the focus is on what is not shown: {stop}"
        assert stop["marked"], f"no focus is shown: {stop}"
        assert stop["name"], f"this has no name: {stop}"
    kinds = {kind for stop in found for kind in stop["kinds"]}
    wanted = {"search-button-field", "primary-toggle" if tab.narrow else "theme-switch-button"}
    if name == TUTORIAL:
        wanted |= {"copybtn", "sphx-glr-example-tags", "download", "right-next"}
    assert wanted <= kinds
    assert not name.startswith("auto") or any("tutorial_comparison" in s["target"] for s in found)


def test_the_menu_of_a_narrow_page_opens_by_keyboard(tab, server: str) -> None:
    visit(tab, server)
    if not tab.narrow:
        assert not tab.locator("button.primary-toggle").is_visible()
        return
    tab.locator("button.primary-toggle").focus()
    tab.keyboard.press("Enter")
    kinds = set()
    for _ in range(20):
        tab.keyboard.press("Tab")
        kinds |= set(tab.evaluate(FOCUSED)["kinds"])
    assert {"nav-link", "theme-switch-button"} <= kinds
    tab.keyboard.press("Escape")
    tab.locator("dialog button.theme-switch-button").wait_for(state="hidden", timeout=3000)


def test_search_by_keyboard(tab, server: str) -> None:
    visit(tab, server)
    tab.keyboard.press("Control+K")
    tab.keyboard.type("calibration")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#search-results li a")
    found = tab.locator("#search-results li a").evaluate_all("links => links.map(a => a.href)")
    assert any("tutorial_calibration" in link for link in found)
    assert not tab.failed


def shown(tab) -> list[str]:
    titles = tab.locator(".sphx-glr-thumbcontainer:visible .sphx-glr-thumbnail-title")
    return titles.all_inner_texts()


def test_tags_filter_by_keyboard(tab, server: str) -> None:
    visit(tab, server + GALLERY)
    everything = shown(tab)
    button = tab.get_by_role("button", name="regression")
    button.focus()
    tab.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert 0 < len(shown(tab)) < len(everything)
    assert "Regression with real tables" in shown(tab)
    assert tab.get_by_role("status").inner_text().startswith(f"{len(shown(tab))} of ")
    assert tab.get_by_role("button", name="segmentation").is_disabled()
    sections = tab.locator("section:visible:has(> .sphx-glr-thumbnails) > h2").all_inner_texts()
    assert "Understanding" in sections
    assert "Evaluating uncertainty" not in sections, "nothing is left in it"
    tab.keyboard.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert shown(tab) == everything


def test_a_tag_on_a_tutorial_leads_to_the_others(tab, server: str) -> None:
    visit(tab, server + TUTORIAL)
    tab.get_by_role("link", name="batch size", exact=True).click()
    tab.wait_for_selector("[aria-pressed=true]")
    assert tab.locator("[aria-pressed=true]").inner_text().startswith("batch size")
    assert "What a batch norm layer remembers" in shown(tab)
    assert "Segmentation: a map of doubt" not in shown(tab)


def test_without_scripts_the_gallery_is_a_list(browser, server: str) -> None:
    with browser.new_context(java_script_enabled=False) as context:
        tab = context.new_page()
        tab.goto(server + GALLERY)
        assert tab.locator(".sphx-glr-thumbcontainer:visible").count() >= 12
        assert tab.locator("#by-subject strong:visible").count() >= 10
        assert tab.locator("button[aria-pressed]").count() == 0
