"""Sphinx configuration; the code it needs lives in ``_ext``, named here by import strings."""

from __future__ import annotations

import os
import sys
import tomllib
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs"), str(ROOT / "docs" / "_ext")]

from make_inventories import PROJECTS  # noqa: E402
from mcbn_gallery import install_cell  # noqa: E402

# The tutorials run in their own folder; what they download is kept in the project's.
os.environ.setdefault("MCBN_DATA", str(ROOT / "data"))

# The one variable of a public copy: "owner/name" on GitHub. With it, the notebooks' first cell can
# install the package; without it, nothing on the site points to a copy that is not there.
repository = os.environ.get("MCBN_REPOSITORY", "")

# Where a public copy is served, as "https://owner.github.io/name/". With it there are a sitemap, a
# page for wrong addresses with links from the root, and canonical addresses.
site_url = os.environ.get("MCBN_SITE_URL", "")
if site_url:
    site_url = site_url.rstrip("/") + "/"

metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
project = metadata["name"]
author = metadata["authors"][0]["name"]
version = release = metadata["version"]
copyright = f"{date.today().year}, {author}"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinxcontrib.bibtex",
    "accessible",
    "api",
    "changelog",
    "code_links",
    "deferred",
    "describe",
    "draw_a_digit",
    "mathml",
    "mcbn_gallery",
    "one_stylesheet",
    "tags",
    "tutorials",
    "sphinxext.opengraph",
    "sphinx_llms_txt",
]
if site_url:
    extensions += ["sphinx_sitemap", "not_found"]
if repository:
    extensions += ["repository"]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_ext"]
default_role = "py:obj"

# API pages
autosummary_generate = True
autodoc_inherit_docstrings = False  # Lightning's and torch's own docstrings are not ours to render
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"member-order": "bysource"}
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_use_admonition_for_examples = False

# Other projects' names, from the small inventories that make_inventories.py writes.
intersphinx_mapping = {
    project: (address, f"inventories/{project}.inv") for project, (address, _) in PROJECTS.items()
}

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

# The gallery
sphinx_gallery_conf = {
    "examples_dirs": "../auto_tutorials",
    "gallery_dirs": "auto_tutorials",
    "filename_pattern": r"tutorial_",
    "subsection_order": [
        "../auto_tutorials/Understanding",
        "../auto_tutorials/Bayesian_Methods",
        "../auto_tutorials/Evaluating_Uncertainty",
        "../auto_tutorials/Applying_It",
        "../auto_tutorials/In_Practice",
        "*",
    ],
    "within_subsection_order": "gallery_order.ReadingOrder",
    "minigallery_sort_order": "gallery_order.reading_order",
    "abort_on_example_error": True,
    "image_scrapers": ("mcbn_gallery.scrape_output", "mcbn_gallery.scrape_figures"),
    "reset_modules": ("matplotlib", "mcbn_gallery.reset"),
    "reset_modules_order": "both",
    "capture_repr": (),  # the page shows what the script prints, no more
    "doc_module": ("mcbn",),
    "backreferences_dir": "api/generated/backreferences",
    "remove_config_comments": True,
    "show_signature": False,
    "css": ("sg_gallery",),  # the others are for output that no page has
    "write_computation_times": False,  # those pages load scripts from CDNs
    "first_notebook_cell": install_cell(repository),
}

# HTML
html_theme = "pydata_sphinx_theme"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_logo = html_favicon = "_static/logo.svg"
html_css_files = ["mcbn.css"]
html_js_files = [("mcbn.js", {"defer": "defer"})]
html_math_renderer = "mathml"
html_copy_source = True
html_show_sphinx = False
html_context = {"default_mode": "auto", "github": f"https://github.com/{repository}"}
# Pages without others beside them need no list of them.
html_sidebars = {
    page: []
    for page in ("404", "bibliography", "changelog", "contributing", "draw_a_digit", "how_it_works")
}
html_theme_options = {
    "logo": {"text": project},
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc", "sg_download_links", "sourcelink", "on_github"],
    "footer_end": [],
    "footer_start": ["copyright"],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_baseurl = site_url
sitemap_url_scheme = "{link}"
sitemap_excludes = ["404.html", "genindex.html", "py-modindex.html", "search.html"]
notfound_urls_prefix = urlsplit(site_url).path or "/"
ogp_site_url = site_url
ogp_image = f"{site_url}_static/social_card.png" if site_url else None
ogp_image_alt = "mcbn: predictive uncertainty from a network that was trained with batch norm."
ogp_social_cards = {"enable": False}
llms_txt_full_file = False
llms_txt_uri_template = site_url + "{docname}.html"
copybutton_exclude = ".linenos, .gp, .go"
