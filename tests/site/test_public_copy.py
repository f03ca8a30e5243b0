"""The site of a public copy: what the two variables of its address add, built in a folder apart."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import nbformat
import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
GITHUB = "https://github.com/owner/name"
COLAB = "https://colab.research.google.com/github/owner/name/blob/notebooks/"
ADDRESS = "https://owner.github.io/name/"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, site: Path) -> Path:
    """A copy of the project with its site in ``html``, built without running the tutorials."""
    root = tmp_path_factory.mktemp("copy")
    skipped = shutil.ignore_patterns("_build", "__pycache__", "generated")
    for name in ("auto_tutorials", "docs", "mcbn"):
        shutil.copytree(ROOT / name, root / name, ignore=skipped)
    shutil.rmtree(root / "docs/auto_tutorials", ignore_errors=True)
    for name in ("CHANGELOG.md", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "html/_static").mkdir(parents=True)
    for path in site.glob("_static/draw_a_digit_*"):  # spares a training
        shutil.copy(path, root / "html/_static")
    variables = {"MCBN_REPOSITORY": "owner/name", "MCBN_SITE_URL": ADDRESS.rstrip("/")}
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-D", "plot_gallery=0", "docs", "html"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)} | variables,
        check=True,
    )
    return root


@pytest.fixture(scope="module")
def pages(root: Path) -> dict[str, BeautifulSoup]:
    found = {}
    for path in (root / "html").rglob("*.html"):
        name = path.relative_to(root / "html").as_posix()
        if not name.startswith("_static"):
            found[name] = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    return found


def test_links_into_the_repository_name_what_is_there(root: Path, pages) -> None:
    generated = {"404", "genindex", "py-modindex", "search"}
    for name, soup in pages.items():
        links = [a["href"] for a in soup.find_all("a", href=True)]
        into = [link.removeprefix(GITHUB) for link in links if link.startswith(GITHUB)]
        files = [re.fullmatch(r"/(blob|edit)/main/([^#]+)(#L\d+)?", link) for link in into]
        assert all(files), into
        if name.removesuffix(".html") not in generated:
            assert {match[1] for match in files} == {"blob", "edit"}, name
        assert all((root / match[2]).is_file() for match in files), into


def test_colab_opens_the_notebooks_that_the_workflow_pushes(root: Path, pages) -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert "path: docs/auto_tutorials/*/*.ipynb" in workflow
    assert "path: notebooks/auto_tutorials" in workflow
    assert "--initial-branch notebooks" in workflow
    tutorials = {name: soup for name, soup in pages.items() if "/tutorial_" in name}
    assert len(tutorials) >= 12
    for name, soup in tutorials.items():
        links = {a["href"] for a in soup.find_all("a", string="Open in Colab")}
        assert links == {COLAB + name.replace(".html", ".ipynb")}
        path = root / "docs" / links.pop().removeprefix(COLAB)
        assert path.match("docs/auto_tutorials/*/*.ipynb")
        first = nbformat.read(path, as_version=4).cells[0].source
        assert f"git+{GITHUB}" in first


def test_without_a_repository_nothing_points_to_one(parse, tutorial: str) -> None:
    if os.environ.get("MCBN_REPOSITORY"):
        pytest.skip("this site was built with MCBN_REPOSITORY")
    links = [a["href"] for a in parse(tutorial).find_all("a", href=True)]
    assert not any("colab.research.google.com" in link for link in links)
    # A text may cite somebody else's repository.
    assert not any("github.com" in link and "auto_tutorials" in link for link in links)


def test_the_page_for_wrong_addresses_works_everywhere(root: Path, pages) -> None:
    soup = pages["404.html"]
    links = [tag[name] for tag in soup.find_all(True) for name in ("href", "src") if tag.get(name)]
    inside = [link for link in links if not urlsplit(link).netloc and not link.startswith("#")]
    assert len(inside) > 10
    for link in inside:
        path = urlsplit(link).path
        assert path.startswith("/name/"), link
        target = root / "html" / path.removeprefix("/name/")
        assert target.is_file() or (target / "index.html").is_file(), link


def test_addresses_are_those_of_the_site(root: Path, pages) -> None:
    for name, soup in pages.items():
        canonical = soup.find("link", rel="canonical")
        assert canonical["href"] == ADDRESS + name
    sitemap = ElementTree.parse(root / "html/sitemap.xml")
    listed = [place.text for place in sitemap.iter() if place.tag.endswith("}loc")]
    assert ADDRESS + "guide/method.html" in listed
    for place in listed:
        assert (root / "html" / place.removeprefix(ADDRESS)).is_file(), place
    llms = (root / "html/llms.txt").read_text(encoding="utf-8")
    for place in re.findall(r"\((https?://\S+?)\)", llms):
        assert (root / "html" / place.removeprefix(ADDRESS)).is_file(), place
