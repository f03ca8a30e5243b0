"""The built site as files: its text, links, figures, tables and downloads."""

from __future__ import annotations

import ast
import csv
import inspect
import re
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path, PurePosixPath
from pkgutil import resolve_name
from statistics import fmean
from urllib.parse import urlsplit

import nbformat
import pytest
from matplotlib.image import imread

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = "auto_tutorials/Bayesian_Methods/tutorial_mc_batch_norm.html"

# What a terminal or a failing build may leave in a page's printed output.
CHATTER = {
    "a warning": r"\w*Warning:|WARNING",
    "a progress bar": r"\r|\d(?:it/s|s/it)\b|\d%\|",
    "a traceback": r"Traceback \(most recent call last\)",
    "an escape sequence": r"\x1b\[",
    "an object's address": r"\bat 0x[0-9a-f]{6,}",
}
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~-])/(?:home|root|work|tmp|usr|opt|var|srv|mnt|Users|builds?)/[\w.-]+|[A-Z]:\\\w"
)


def internal_links(soup) -> list[str]:
    links = [a["href"] for a in soup.find_all("a", href=True)]
    return [link for link in links if not urlsplit(link).scheme and not link.startswith("//")]


def downloads(soup) -> dict[str, str]:
    """The downloads at a tutorial's end, by suffix."""
    links = [a["href"] for a in soup.select(".sphx-glr-footer-example a.download")]
    return {PurePosixPath(link).suffix: link for link in links}


def test_the_tutorial_is_there(site: Path) -> None:
    assert (site / TUTORIAL).is_file()


@pytest.mark.parametrize("kind", CHATTER)
def test_output_has_no_chatter(parse, tutorial: str, kind: str) -> None:
    outputs = parse(tutorial).select("div.sphx-glr-script-out, div.mcbn-output")
    assert outputs, "the tutorial prints nothing"
    for output in outputs:
        found = re.search(CHATTER[kind], output.get_text())
        assert not found, f"{kind}: {output.get_text()[:300]}"


def test_no_path_of_the_build_machine(parse, page: str) -> None:
    found = MACHINE_PATH.search(parse(page).get_text())
    assert not found, found
    assert Path(__file__).resolve().parents[2].as_posix() not in str(parse(page))


def test_no_error_of_the_builder(parse, page: str) -> None:
    assert not parse(page).select(".system-message, .problematic, p.admonition-title.error")


def test_links_and_anchors_lead_somewhere(site: Path, parse, resolve, page: str) -> None:
    broken = []
    for link in internal_links(parse(page)):
        target, anchor = resolve(page, link)
        if target.endswith("/") or not PurePosixPath(target).suffix:
            target = f"{target.rstrip('/')}/index.html"
        anchored = anchor and target.endswith(".html")
        if not (site / target).is_file() or (anchored and not parse(target).find(id=anchor)):
            broken.append(link)
    assert not broken


def test_images_have_alternative_text_and_exist(site: Path, parse, resolve, page: str) -> None:
    for image in parse(page).find_all("img"):
        # An empty text is right for a picture whose link or caption already says it.
        decorative = image.find_parent(class_=["sphx-glr-thumbcontainer", "navbar-brand"])
        assert image.get("alt") or (decorative and image.has_attr("alt")), image
        assert (site / resolve(page, image["src"])[0]).is_file(), image


def test_nothing_is_loaded_from_elsewhere(parse, page: str) -> None:
    soup = parse(page)
    loaded = [tag["src"] for tag in soup.find_all(src=True)]
    rels = {"stylesheet", "preload", "icon", "modulepreload", "preconnect", "dns-prefetch"}
    loaded += [tag["href"] for tag in soup.find_all("link", href=True) if rels & set(tag["rel"])]
    assert loaded
    elsewhere = [url for url in loaded if urlsplit(url).netloc]
    assert not elsewhere


def test_only_the_search_page_loads_the_search(parse, page: str) -> None:
    asked = [tag["src"] for tag in parse(page).find_all("script", src=True)]
    asked += [tag["href"] for tag in parse(page).select("link[rel=preload]")]
    names = {PurePosixPath(urlsplit(url).path).name for url in asked}
    search = {"searchtools.js", "language_data.js", "searchindex.js"}
    assert names & search == (search if page == "search.html" else set())
    assert "doctools.js" in names
    assert "fontawesome.js" not in names  # 22 kB, for icons that the site has not


def test_stylesheets_load_nothing_from_elsewhere(site: Path) -> None:
    sheets = list(site.rglob("*.css"))
    assert sheets
    for sheet in sheets:
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", text), sheet


def test_figures_for_both_themes(parse, tutorial: str) -> None:
    soup = parse(tutorial)
    light = soup.select("img.mcbn-figure.only-light")
    dark = soup.select("img.mcbn-figure.only-dark")
    assert light, "the tutorial draws nothing"
    assert [image["alt"] for image in light] == [image["alt"] for image in dark]
    assert [image["src"].replace(".png", "_dark.png") for image in light] == [
        image["src"] for image in dark
    ]


def test_result_tables_are_tables(parse) -> None:
    tables = parse(TUTORIAL).select(".mcbn-results table")
    text = " ".join(table.get_text(" ") for table in tables)
    for metric in ("Acc", "Brier", "NLL", "ECE", "AURC", "Cov@5Risk", "flops", "params"):
        assert metric in text
    assert all(table.caption and table.find("th") for table in tables)
    assert not re.search("[┏┃│╭]", parse(TUTORIAL).get_text())


def test_tutorial_says_how_it_ran(parse, tutorial: str) -> None:
    soup = parse(tutorial)
    record = [term.text.rstrip(":") for term in soup.select(".mcbn-run dt")]
    assert record == ["Time", "Device", "Memory", "Data", "Seed", "Versions", "Date"]
    assert re.search(r"\d+ minutes \d+\.\d+ seconds", soup.select_one(".sphx-glr-timing").text)


def test_tutorial_says_what_it_takes_and_leaves(parse, site, resolve, tutorial: str) -> None:
    soup = parse(tutorial)
    beforehand = " ".join(soup.select_one(".mcbn-beforehand").text.split())
    assert re.fullmatch(
        r"You will .+, in about \d+ minutes\. You need .+\. In short: .+\.", beforehand
    )
    assert len(soup.select(".mcbn-takeaways li")) == 3
    script = site / resolve(tutorial, downloads(soup)[".py"])[0]
    whole = ast.parse(soup.select_one(".mcbn-whole-code pre").get_text())
    written = ast.parse(script.read_text(encoding="utf-8"))
    assert ast.dump(whole) == ast.dump(ast.Module(written.body[1:], []))  # but for the docstring


def test_cards_say_what_their_tutorials_find(site: Path, parse, resolve) -> None:
    gallery = "auto_tutorials/index.html"
    cards = parse(gallery).select(".sphx-glr-thumbcontainer")
    assert len(cards) >= 13
    for card in cards:
        assert card.select_one(".mcbn-finds").text.endswith(".")
        assert re.fullmatch(r"[A-Z][a-z ]+ · \d+ minutes", card.select_one(".mcbn-level").text)
        pictures = [site / resolve(gallery, image["src"])[0] for image in card.select("img")]
        assert [imread(picture).shape[1] >= 320 for picture in pictures] == [True, True]


def test_the_first_page_quotes_what_the_comparison_found(parse) -> None:
    with (ROOT / "mcbn/experiments/results/comparison.csv").open(encoding="utf-8") as file:
        of_all = list(csv.DictReader(file))
    stored = [row for row in of_all if row["data"] == "digits"]
    [quoted] = parse("index.html").select("table.mcbn-brings")
    for line, method in zip(
        quoted.select("tbody tr"), ("plain", "MCBN", "plain, scaled", "ensemble"), strict=True
    ):
        cells = [float(cell.text) for cell in line.select("td")[1:]]
        passes = int(cells[3])
        rows = [row for row in stored if (row["method"], row["passes"]) == (method, str(passes))]
        assert len(rows) == 10
        nll, ece = (fmean(float(row[key]) for row in rows) for key in ("NLL", "ECE"))
        assert cells[0] == pytest.approx(nll, abs=0.0051), method
        assert cells[1] == pytest.approx(100 * ece, abs=0.051), method
        assert cells[2] == float(rows[0]["trainings"])
    plain, mcbn = (
        fmean(
            float(row["NLL"])
            for row in of_all
            if (row["data"], row["method"], row["passes"]) == key
        )
        for key in (("vowels", "plain", "1"), ("vowels", "MCBN", "16"))
    )
    assert f"raised the NLL by {mcbn - plain:.3f}." in parse("index.html").text


def test_downloads_resolve(site: Path, parse, resolve, tutorial: str) -> None:
    soup = parse(tutorial)
    links = downloads(soup)
    assert set(links) == {".py", ".ipynb", ".zip"}
    paths = {suffix: site / resolve(tutorial, link)[0] for suffix, link in links.items()}
    ast.parse(paths[".py"].read_text(encoding="utf-8"))
    nbformat.validate(nbformat.read(paths[".ipynb"], as_version=4))
    with zipfile.ZipFile(paths[".zip"]) as archive:
        assert archive.testzip() is None
        for suffix in (".py", ".ipynb"):
            assert archive.read(paths[suffix].name) == paths[suffix].read_bytes()
    sidebar = [a["href"] for a in soup.select(".sphx-glr-sidebar-item a")]
    assert sorted(sidebar) == sorted(links.values())


def test_notebook_has_no_markup_of_another_kind(site: Path, parse, resolve, tutorial: str) -> None:
    link = downloads(parse(tutorial))[".ipynb"]
    notebook = nbformat.read(site / resolve(tutorial, link)[0], as_version=4)
    assert 'find_spec("mcbn")' in notebook.cells[0].source
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert texts
    for text in texts:
        assert not re.search(r":\w+:`|^\.\. |`_\b", text, flags=re.M), text


def imported_names(script: str) -> Iterator[tuple[str, str]]:
    """The imported names in a script's code: as written, and in full.

    Without those of Python itself, and without constants, which have no page of their own.
    """
    tree = ast.parse(script)
    parts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imports = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            imports |= {each.asname or each.name: module + each.name for each in node.names}
    for node in ast.walk(tree):
        whole = isinstance(node, (ast.Name, ast.Attribute)) and node not in parts
        written = ast.unparse(node) if whole else ""
        root, dot, rest = written.partition(".")
        full = imports.get(root, root) + dot + rest
        standard = full.partition(".")[0] in sys.stdlib_module_names
        if root in imports and not standard and re.fullmatch(r"[\w.]+", written):
            origin = resolve_name(imports[root])
            if inspect.ismodule(origin) or callable(origin):
                yield written, full


def test_names_in_the_code_lead_to_their_documentation(
    site: Path, parse, resolve, tutorial: str
) -> None:
    soup = parse(tutorial)
    linked = {link.get_text().lstrip("@") for link in soup.select("div.highlight-Python pre a")}
    script = site / resolve(tutorial, downloads(soup)[".py"])[0]
    names = dict(imported_names(script.read_text(encoding="utf-8")))
    assert names
    missing = [
        name
        for name, full in names.items()
        # Of an attribute's attribute, a link on the first part is enough.
        if callable(resolve_name(full))
        and not any(f"{name}.".startswith(f"{text}.") for text in linked)
    ]
    assert not missing


def test_tags_lead_to_the_list_by_subject(parse, resolve, tutorial: str) -> None:
    tags = parse(tutorial).select("p.sphx-glr-example-tags a")
    assert tags
    for tag in tags:
        gallery, anchor = resolve(tutorial, tag["href"])
        entry = parse(gallery).find(id=anchor)
        assert entry.strong.text.lower() == tag.text
        assert tutorial in [resolve(gallery, link["href"])[0] for link in entry.find_all("a")]


def public_names(module: str) -> list[str]:
    """The package's names, or the functions and classes that one of its modules defines."""
    mcbn = import_module("mcbn")
    if module == "mcbn":
        return mcbn.__all__
    members = vars(import_module(module)).items()
    return [
        name for name, v in members if getattr(v, "__module__", "") == module and name[0] != "_"
    ]


PUBLIC = ["predictive", "metrics", "diagnostics", "results", "plotting"]


@pytest.mark.parametrize("module", ["mcbn", *(f"mcbn.{name}" for name in PUBLIC)])
def test_every_public_name_has_a_page(site: Path, module: str) -> None:
    names = public_names(module)
    assert names
    missing = [n for n in names if not (site / f"api/generated/{module}.{n}.html").is_file()]
    assert not missing


def test_math_is_drawn_by_the_browser_itself(site: Path, parse) -> None:
    pages = [p.relative_to(site).as_posix() for p in site.rglob("*.html")]
    formulas = [math for page in pages for math in parse(page).select(".math math")]
    assert formulas
    assert not any("mathjax" in str(tag).lower() for tag in parse(TUTORIAL).find_all("script"))
