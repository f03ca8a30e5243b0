"""README, docs and metadata agree on the version and on what the package is."""

import re
import tomllib
from pathlib import Path

import yaml

import mcbn

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def words(name):
    """The text of a file as one line, without the markup that the formats do not share."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", text)


def test_one_version():
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert mcbn.__version__ == PROJECT["version"] == newest[1] == str(CITATION["version"])


def test_one_description():
    description = PROJECT["description"]
    assert description.endswith(".")
    assert description in words("README.md")
    assert description in words("docs/index.rst")
    assert description == " ".join(CITATION["abstract"].split())


def test_one_name_of_the_authors_and_one_licence():
    assert [author["name"] for author in CITATION["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    assert CITATION["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    assert CITATION["keywords"] == PROJECT["keywords"]


def test_the_paper_is_cited_alike():
    [paper] = CITATION["references"]
    authors = [f"{a['family-names']}, {a['given-names']}" for a in paper["authors"]]
    for name in ("README.md", "docs/references.bib"):
        text = words(name)
        assert f"author = {{{' and '.join(authors)}}}" in re.sub(" +=", " =", text)
        assert paper["title"] in text
        assert f"year = {{{paper['year']}}}" in re.sub(" +=", " =", text)


def test_one_lowest_python():
    version = PROJECT["requires-python"].removeprefix(">=")
    for name in ("README.md", "docs/index.rst", "docs/contributing.rst"):
        assert f"Python {version} or newer" in words(name)
