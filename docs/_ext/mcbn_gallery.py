"""What Sphinx-Gallery lacks for this site: HTML output in its place, figures for both themes with a
required alt text, a record of each run, a box for each claim that fails on this machine, notebooks
without reST roles, and a key for re-runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import textwrap
import tomllib
import warnings
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asserts
import matplotlib.pyplot as plt
import numpy as np
import rich
import sphinx_gallery.gen_rst
import sphinx_gallery.notebook
import torch
from matplotlib.colors import to_rgba_array
from matplotlib.image import imread
from rich.console import Console
from sphinx.errors import ExtensionError
from sphinx.util import logging
from sphinx.util.console import bold
from sphinx_gallery.utils import get_md5sum
from tutorials import NOTES

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterator

    from matplotlib.figure import Figure
    from sphinx.application import Sphinx

logger = logging.getLogger(__name__)
VERSIONS = ("torch", "lightning", "numpy", "matplotlib", "sphinx-gallery")


# --- Printed output: text stays text, tables become HTML, in the order they were printed ---


class PageConsole(Console):
    """The console that ``rich.get_console()`` returns while an example runs.

    It keeps what is no text in `pieces`, as reST, with the text printed before it.
    """

    def __init__(self) -> None:
        super().__init__(width=88, color_system=None, force_jupyter=False, force_terminal=False)
        self.pieces: list[str] = []

    def print(self, *objects: Any, **kwargs: Any) -> None:
        for rendered in objects:
            if not hasattr(rendered, "_repr_html_"):
                super().print(rendered, **kwargs)
            else:
                self.put(raw_html(rendered._repr_html_()))

    def put(self, rst: str) -> None:
        printed = sys.stdout.output  # type: ignore[union-attr]  # Sphinx-Gallery's tee
        self.pieces.append(literal_block(printed.getvalue()))
        printed.seek(0)
        printed.truncate()
        self.pieces.append(rst)

    def drain(self) -> str:
        pieces, self.pieces = self.pieces, []
        return "".join(pieces)


def literal_block(text: str) -> str:
    if not text.strip():
        return ""
    return (
        ".. rst-class:: sphx-glr-script-out\n\n .. code-block:: none\n\n"
        + textwrap.indent(text.rstrip().expandtabs(), " " * 4)
        + "\n\n"
    )


def raw_html(markup: str) -> str:
    box = f'<div class="mcbn-output">\n{markup}\n</div>'
    return ".. raw:: html\n\n" + textwrap.indent(box, " " * 4) + "\n\n"


def scrape_output(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    record_run(block_vars)
    return rich.get_console().drain()  # type: ignore[attr-defined]


# --- Claims: one that fails is shown where it stands, and ends no build but that of CI ---

FAILED_CLAIM = "mcbn-failed-claim"


def strict() -> bool:
    """Whether a claim that fails ends the build."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def report(claim: asserts.Claim) -> None:
    if not claim.failed:
        return
    if strict():
        raise AssertionError(f"{claim.message or 'a claim'}: {claim.text}: {claim.came_out()}")
    message = f"   {claim.message}\n\n" if claim.message else ""
    rich.get_console().put(  # type: ignore[attr-defined]
        f".. admonition:: This did not hold here\n   :class: warning {FAILED_CLAIM}\n\n{message}"
        f"   Expected: ``{claim.text}``\n\n   Came out: ``{claim.came_out()}``\n\n"
        "   The text on this page says what was found where it was written.\n\n"
    )


_exec_and_get_memory = sphinx_gallery.gen_rst._exec_and_get_memory


def run_cell(*args: Any, code_ast: ast.Module, script_vars: dict[str, Any], **kwargs: Any) -> Any:
    asserts.watch(code_ast, script_vars["fake_main"].__dict__, report)
    try:
        return _exec_and_get_memory(*args, code_ast=code_ast, script_vars=script_vars, **kwargs)
    except ModuleNotFoundError as error:
        if strict() or not is_optional(error):
            raise
        rich.get_console().put(  # type: ignore[attr-defined]
            f".. admonition:: This page was not run here\n   :class: warning {NOT_RUN}\n\n"
            f'   The package ``{error.name}`` is not installed. ``pip install -e ".[docs]"``\n'
            "   brings what the tutorials use.\n\n"
        )
        script_vars["execute_script"] = False  # nor are the next cells; the next build tries again
        return False, 0.0


NOT_RUN = "mcbn-not-run"


def is_optional(error: ModuleNotFoundError) -> bool:
    """Whether what is missing is a whole package, and not ours."""
    return error.name is not None and "." not in error.name and error.name != "mcbn"


def failed_claims(page: Path) -> int:
    return page.read_text(encoding="utf-8").count(FAILED_CLAIM) if page.exists() else 0


def count_failed_claims(app: Sphinx, error: Exception | None) -> None:
    """Say in the build's last lines how many claims failed, in this build or when they last ran."""
    gallery = Path(app.srcdir, app.config.sphinx_gallery_conf["gallery_dirs"])
    counts = {page.stem: failed_claims(page) for page in sorted(gallery.rglob("tutorial_*.rst"))}
    if error is None and (total := sum(counts.values())):
        places = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
        what = "1 claim" if total == 1 else f"{total} claims"
        logger.info(bold(f"{what} of the tutorials did not hold here, see the boxes: {places}"))


# --- Figures: an alt text each, transparent, once for the light and once for the dark theme ---


def scrape_figures(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    rst = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        alt = " ".join(figure.get_label().split())
        if not alt:
            raise ExtensionError(
                f"{Path(block_vars['src_file']).name}: a figure of the cell at line {block.lineno} "
                'has no alt text; say what it shows with fig.set_label("…").'
            )
        light = Path(next(block_vars["image_path_iterator"]))
        dark = light.with_stem(light.stem + "_dark")
        rst.append(save(figure, light, alt, "only-light", gallery_conf))
        darken(figure)
        rst.append(save(figure, dark, alt, "only-dark", gallery_conf))
    plt.close("all")
    return "".join(rst)


def save(figure: Figure, path: Path, alt: str, theme: str, gallery_conf: dict[str, Any]) -> str:
    """Save at twice the size it is shown at, so that it is sharp on a HiDPI screen."""
    figure.savefig(path, dpi=2 * 96, transparent=True, bbox_inches="tight")
    height, width = imread(path).shape[:2]
    source = Path(os.path.relpath(path, gallery_conf["src_dir"])).as_posix()
    return textwrap.dedent(f"""
        .. image:: /{source}
           :alt: {alt}
           :class: mcbn-figure {theme}
           :width: {round(width / 2)}
           :height: {round(height / 2)}
           :loading: lazy

        """)


def darken(figure: Figure) -> None:
    """Turn the greys of a drawn figure over: black text to near white, white frames to near black.

    Colours stay, and so does text that is written over an image.
    """
    over_images = {text for ax in figure.axes if ax.images for text in ax.texts}
    changes = []  # all are read before one is set: a marker's colour may follow its line's
    for artist in set(figure.findobj()) - over_images:
        for name in ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor"):
            try:
                colors = to_rgba_array(getattr(artist, f"get_{name}")())
            except (AttributeError, TypeError, ValueError):  # no such colour
                continue
            grey = np.ptp(colors[:, :3], axis=1) < 0.05 if len(colors) else np.array([False])
            if grey.any():
                colors[grey, :3] = 0.92 - 0.85 * colors[grey, :3]
                changes.append((getattr(artist, f"set_{name}"), colors))
    for setter, colors in changes:
        setter(colors if len(colors) > 1 else tuple(colors[0]))


# --- One example: its surroundings, and what is recorded of the run ---

_stack = contextlib.ExitStack()
# Sphinx-Gallery notes that an example has run before it writes the page. A build that is killed in
# between leaves this file, which names the example.
UNDER_WAY = "example-under-way"


def reset(gallery_conf: dict[str, Any], fname: str | None, when: str) -> None:
    """Before an example: a fresh console, and warnings as errors. After it: all as it was."""
    _stack.close()
    if when == "before":
        mark = Path(gallery_conf["src_dir"], gallery_conf["gallery_dirs"], UNDER_WAY)
        mark.write_text(str(fname), encoding="utf-8")
        _stack.callback(mark.unlink)
        _stack.enter_context(example_surroundings())


@contextlib.contextmanager
def example_surroundings() -> Iterator[None]:
    torch.seed()  # the script has to set its seed itself
    rich._console = PageConsole()
    if (peak := Path("/proc/self/clear_refs")).exists():
        with contextlib.suppress(OSError):  # a kernel that does not allow it
            peak.write_text("5")  # starts the peak memory anew
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # plt.show() has no window here.
        warnings.filterwarnings("ignore", message="FigureCanvasAgg is non-interactive")
        yield
    rich._console = None


def peak_memory() -> int:
    """The largest resident memory of this process, in bytes, since the example began."""
    with contextlib.suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def record_run(block_vars: dict[str, Any]) -> None:
    """Note beside the page what it ran on; after the last cell this is the record of all."""

    def describe(datamodule: Any) -> str:
        name = type(datamodule).__name__.removesuffix("DataModule")
        return name + (", the package's sample" if getattr(datamodule, "uses_sample", 0) else "")

    kinds = {"DataModule": describe, "DataSet": lambda table: f"the table {table.name}"}
    values = block_vars["example_globals"].values()
    data = {
        tell(value)
        for value in values
        for kind, tell in kinds.items()
        if type(value).__name__.endswith(kind)
    }
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    facts = {
        "Device": gpu or f"CPU, {torch.get_num_threads()} threads",
        "Memory": f"{peak_memory() / 2**30:.1f} GiB at most",
        "Data": "; ".join(sorted(data)) or "made by the script",
        "Seed": str(torch.initial_seed()),
        "Versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in VERSIONS[:-1]),
        "Date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    run = Path(block_vars["target_file"]).with_suffix(".run.json")
    run.write_text(json.dumps({k: v for k, v in facts.items() if v}), encoding="utf-8")


def insert_record(app: Sphinx, docname: str, source: list[str]) -> None:
    """Show the record of the run after a tutorial's introduction."""
    page = Path(app.srcdir, docname)
    run, cost = page.with_suffix(".run.json"), page.with_suffix(".cost.json")
    if not (run.exists() and cost.exists()):
        return
    facts = {"Time": f"{json.loads(cost.read_text())['time']:.1f} s", **json.loads(run.read_text())}
    note = tomllib.loads(NOTES.read_text(encoding="utf-8")).get(page.stem.partition("_")[2], {})
    if "data" in note:  # of another package, which no run can tell
        facts["Data"] = note["data"]
    fields = "".join(f"   :{name}: {value}\n" for name, value in facts.items())
    box = f".. container:: mcbn-run\n\n{fields}\n"
    # The introduction ends where the first section or the first cell begins.
    end = re.search(r"^(\.\. GENERATED FROM|\S.*\n-{3,}$)", source[0], flags=re.M).start()
    source[0] = f"{source[0][:end]}{box}{source[0][end:]}"


# --- Notebooks ---

ROLE = re.compile(r":[\w:+-]+:`(?:([^`<]+?)\s*<[^`>]+>|(~?)([^`]+))`")


def install_cell(repository: str) -> str:
    """The first cell of every notebook: it installs the package only where it is missing."""
    if repository:
        install = f'%pip install --quiet "mcbn @ git+https://github.com/{repository}"'
    else:
        install = 'raise ModuleNotFoundError("run `pip install -e .` in a copy of the project")'
    return (
        "from importlib.util import find_spec\n\n"
        f'if find_spec("mcbn") is None:  # on Colab, say\n    {install}'
    )


def plain_roles(text: str) -> str:
    """Replace reST roles by Markdown code; math and literals are left to Sphinx-Gallery."""

    def name(match: re.Match[str]) -> str:
        if match[0].startswith(":math:"):
            return match[0]
        title, short, target = match.groups()
        return title or f"``{target.rsplit('.', 1)[-1] if short else target}``"

    return ROLE.sub(name, text)


_rst2md = sphinx_gallery.notebook.rst2md


def rst2md(text: str, *args: Any) -> str:
    return _rst2md(plain_roles(text), *args)


# --- When a tutorial runs again ---


def rerun_key(root: Path) -> str:
    """A digest of all that a page depends on, besides its script."""
    digest = hashlib.sha256()
    files = [p for p in (root / "mcbn").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    for path in [*sorted(files), Path(__file__), Path(asserts.__file__)]:
        digest.update(f"{path.name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(" ".join(version(name) for name in VERSIONS).encode())
    return digest.hexdigest()


def forget_old_runs(app: Sphinx) -> None:
    """Drop the records of the runs that no longer count, so that their tutorials run again.

    That is all of them when the key has changed, the one during which a build was killed, and in a
    strict build those in which a claim failed. In a build that runs nothing, it is those whose
    script has changed: their pages are left without output, even if the change is taken back.
    """
    conf = app.config.sphinx_gallery_conf
    gallery = Path(app.srcdir, conf["gallery_dirs"])
    gallery.mkdir(exist_ok=True)
    record = gallery / "rerun-key"
    key = f"{rerun_key(Path(app.srcdir).parent)}\n{conf['first_notebook_cell']}"
    mark = gallery / UNDER_WAY
    killed = mark.read_text(encoding="utf-8") if mark.exists() else ""
    for checksum in gallery.rglob("*.py.md5"):
        script = Path(app.srcdir, conf["examples_dirs"], checksum.relative_to(gallery)).with_suffix(
            ""
        )
        if conf["plot_gallery"]:
            outdated = not record.exists() or record.read_text() != key
            outdated |= strict() and failed_claims(checksum.with_name(f"{script.stem}.rst")) > 0
        else:
            outdated = not script.exists() or get_md5sum(script, "t") != checksum.read_text()
        if outdated or script.name == killed:
            checksum.unlink()
            checksum.with_name(f"{script.stem}.run.json").unlink(missing_ok=True)
    mark.unlink(missing_ok=True)
    if conf["plot_gallery"]:
        record.write_text(key)


def setup(app: Sphinx) -> dict[str, Any]:
    sphinx_gallery.notebook.rst2md = rst2md
    sphinx_gallery.gen_rst._exec_and_get_memory = run_cell
    app.connect("builder-inited", forget_old_runs, priority=100)  # before the gallery is made
    app.connect("source-read", insert_record)
    app.connect("build-finished", count_failed_claims, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
