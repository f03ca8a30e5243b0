"""Fixtures for the tests of the built site: its folder, its pages, a server and a browser."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nothing is asked elsewhere
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--site", default=str(ROOT / "docs/_build/html"), help="the built HTML")
    parser.addoption(
        "--axe", default=os.environ.get("AXE_JS", ""), help="axe.min.js of the npm package axe-core"
    )


def site_folder(config: pytest.Config) -> Path:
    site = Path(config.getoption("--site")).resolve()
    if not (site / "index.html").is_file():
        raise pytest.UsageError(
            f"no site in {site}; build it with `sphinx-build docs docs/_build/html`, "
            "or name its folder with --site"
        )
    return site


def page_names(site: Path) -> list[str]:
    names = (path.relative_to(site) for path in site.rglob("*.html"))
    return sorted(name.as_posix() for name in names if name.parts[0] != "_static")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a page where a test asks for `page`, a tutorial where it asks for `tutorial`."""
    if {"page", "tutorial"} & set(metafunc.fixturenames):
        pages = page_names(site_folder(metafunc.config))
        if "page" in metafunc.fixturenames:
            metafunc.parametrize("page", pages)
        if "tutorial" in metafunc.fixturenames:
            metafunc.parametrize("tutorial", [p for p in pages if "/tutorial_" in p])


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Path:
    return site_folder(request.config)


@pytest.fixture(scope="session")
def parse(site: Path):
    """Read a page of the site; each is parsed once."""

    @functools.cache
    def parse(name: str) -> BeautifulSoup:
        return BeautifulSoup((site / name).read_text(encoding="utf-8"), "html.parser")

    return parse


@pytest.fixture(scope="session")
def prefix(parse) -> str:
    """The path that the site is published under: that of MCBN_SITE_URL when it was built."""
    canonical = parse("index.html").find("link", rel="canonical")
    return str(PurePosixPath(urlsplit(canonical["href"]).path).parent) if canonical else "/"


@pytest.fixture(scope="session")
def resolve(prefix: str):
    """The file and the anchor that a `link` on `page` points to."""

    def resolve(page: str, link: str) -> tuple[str, str]:
        parts = urlsplit(link)
        if not parts.path:
            return page, unquote(parts.fragment)
        path = PurePosixPath(prefix, page).parent / unquote(parts.path)
        steps: list[str] = []
        for step in path.parts[1:]:
            if step != "..":
                steps.append(step)
            else:
                assert steps, f"{link} on {page} leaves the server"
                steps.pop()
        inside = PurePosixPath("/", *steps)
        assert inside.is_relative_to(prefix), f"{link} on {page} leaves the site"
        folder = "/" if parts.path.endswith("/") else ""
        return f"{inside.relative_to(prefix)}{folder}", unquote(parts.fragment)

    return resolve


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    prefix: str

    def translate_path(self, path: str) -> str:
        return super().translate_path("/" + path.removeprefix(self.prefix).lstrip("/"))

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def server(site: Path, prefix: str) -> Iterator[str]:
    """The site's address, served from this machine."""
    served = type("Handler", (QuietHandler,), {"prefix": prefix})
    handler = functools.partial(served, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Debian's chromium, or any other on the path, driven by playwright."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here: neither chromium nor google-chrome is on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe(request: pytest.FixtureRequest) -> str:
    """The text of axe-core."""
    path = request.config.getoption("--axe")
    if not path:
        pytest.skip("no axe-core here: name axe.min.js with --axe or the variable AXE_JS")
    return Path(path).read_text(encoding="utf-8")
