"""The built site in a browser: accessibility, and no request that leaves it."""

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

    def guard(route):
        if route.request.url.startswith(server):
            route.continue_()
        else:
            tab.left.append(route.request.url)
            route.abort()

    context.route("**/*", guard)
    tab.on("pageerror", lambda error: tab.failed.append(str(error)))
    tab.on("response", lambda r: tab.failed.append(f"{r.status} {r.url}") if r.status > 399 else 0)
    tab.theme = theme
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
    result = tab.evaluate("axe.run()")
    assert result["passes"]
    assert not [
        (violation["id"], [node["html"] for node in violation["nodes"]])
        for violation in result["violations"]
    ]


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


def test_keyboard_reaches_the_content(tab, server: str) -> None:
    visit(tab, server)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent.trim()") == "Skip to main content"
    seen = set()
    for _ in range(80):
        tab.keyboard.press("Tab")
        shown = tab.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e);
            return [e.tagName + ' ' + (e.href || e.className), s.outlineStyle + s.boxShadow]; }"""
        )
        if shown[0].startswith("BODY"):
            break
        seen.add(shown[0])
        assert shown[1] != "nonenone", f"no focus is shown on {shown[0]}"
    assert any("auto_tutorials/index.html" in name for name in seen)
