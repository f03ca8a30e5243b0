"""The files of images: what is read, where it comes from, and that it is what it should be."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import threading
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from torch import Tensor

# Size in bytes and SHA-256. They pin a file to its last bit: nothing is believed that a header
# says, nothing of another size is read, and it does not matter which mirror a file came from.
_FILES = {
    "MNIST/raw/train-images-idx3-ubyte": (
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "MNIST/raw/train-labels-idx1-ubyte": (
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "MNIST/raw/t10k-images-idx3-ubyte": (
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "MNIST/raw/t10k-labels-idx1-ubyte": (
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "FashionMNIST/raw/t10k-images-idx3-ubyte": (
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "FashionMNIST/raw/t10k-labels-idx1-ubyte": (
        10_008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
    "mnist-images-idx3-ubyte.gz": (
        813_934,
        "28a1bc8911bcd3882853e502930bf3790571ce53eb7e99417f565a6f09f66e62",
    ),
    "mnist-labels-idx1-ubyte.gz": (
        59,
        "ee243ebfccd41f946eb875bb08e2220388a69a94e2d11454569c6293209708ed",
    ),
    "fashion-images-idx3-ubyte.gz": (
        436_039,
        "efa109525e22e5e23a6038d6a162199c455a7b6820da5a9e53125cfdb132f6f1",
    ),
    "fashion-labels-idx1-ubyte.gz": (
        46,
        "e43bcd9f36f79255b108cfb3d56a066f886477a3797adca24aa7a65c591446d6",
    ),
}
MNIST, FASHION, SHIPPED_MNIST, SHIPPED_FASHION = (
    [name for name in _FILES if name.startswith(start)]
    for start in ("MNIST", "FashionMNIST", "mnist", "fashion")
)
SHIPPED = Path(__file__).parent / "sample"

# torchvision's own mirrors.
_MIRRORS = {
    "MNIST": [
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    ],
    "FashionMNIST": ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"],
}
_PATIENCE = 15.0  # seconds
_SLOWEST = 1 << 18  # bytes in that time


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path as its user means it: ``~`` is the home folder.

    Unlike ``Path.expanduser`` it leaves alone what begins with ``~`` and names no user's home.

    Example:
        >>> expanded("~nobody's/t.csv").name, "~" in str(expanded("~/t.csv"))
        ('t.csv', False)
    """
    return Path(os.path.expanduser(path))


def root_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the data sets: root, or what ``MCBN_DATA`` says, or else ``data``."""
    return expanded((os.environ.get("MCBN_DATA") or "data") if root is None else root)


def missing(root: Path, names: Sequence[str]) -> list[str]:
    """Those of the names that are not under root."""
    return [name for name in names if not (root / name).exists()]


def _pinned(name: str) -> tuple[int, str]:
    if name not in _FILES:
        raise ValueError(f"{name!r} is no file of the datasets, wanted one of {', '.join(_FILES)}.")
    return _FILES[name]


def _is_whole(name: str, content: bytes | bytearray) -> bool:
    size, sha256 = _FILES[name]
    return len(content) == size and hashlib.sha256(content).hexdigest() == sha256


def read(root: Path, name: str) -> Tensor:
    """A file of images ``(n, 28, 28)`` or labels ``(n,)``, as uint8.

    Raises:
        ValueError: The file is not bit for bit the one it should be, or there should be none of
            this name. The message names it.
    """
    (size, sha256), path = _pinned(name), root / name
    found = path.stat().st_size
    content = bytearray(path.read_bytes()) if found == size else bytearray()
    if not _is_whole(name, content):
        remedy = "Install mcbn again" if root == SHIPPED else "Delete it to have it fetched again"
        raise ValueError(
            f"{path} is damaged: it has {found:,} bytes, wanted are the {size:,} bytes with the "
            f"SHA-256 {sha256}. {remedy}."
        )
    if path.suffix == ".gz":
        content = bytearray(gzip.decompress(content))
    if "images" in name:
        return torch.frombuffer(content, dtype=torch.uint8, offset=16).view(-1, 28, 28)
    return torch.frombuffer(content, dtype=torch.uint8, offset=8)


def fetch_missing(root: Path, names: Sequence[str], *, patient: bool) -> None:
    """Downloads those of the files that are not under root.

    Gives up after 15 seconds in all; a patient caller goes on as long as every 15 seconds bring
    256 KiB. A file appears under its name whole and checked, or not at all. Once all are there,
    what killed runs left of them is deleted.

    Raises:
        TimeoutError: It took too long.
        ConnectionError: No mirror gave a file.
        OSError: A file cannot be written.
        ValueError: There is no such file in the datasets.
    """
    for name in names:
        _pinned(name)
    if absent := missing(root, names):
        download = _Download(root, absent)
        download.start()
        while download.is_alive():
            before = download.received
            download.join(_PATIENCE)
            too_slow = not patient or download.received - before < _SLOWEST
            if download.is_alive() and too_slow:
                download.cancelled.set()
                raise TimeoutError(f"the download was given up after {_PATIENCE:g} seconds")
        if download.error:
            raise download.error
    for path in (root / name for name in names):
        for part in path.parent.glob(f"{path.name}.*.part"):
            with suppress(OSError):
                part.unlink()


class _Download(threading.Thread):
    """A thread of its own, because no time-out reaches a name server that does not answer."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.root, self.names = root, names
        self.received = 0
        self.cancelled = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for name in self.names:
                self._place(self.root / name, self._fetch_from_any_mirror(name))
        except Exception as error:  # raised again by the caller, in its own thread
            self.error = error

    def _fetch_from_any_mirror(self, name: str) -> bytes:
        folder, _, file = name.split("/")
        errors: list[str] = []
        for mirror in _MIRRORS[folder]:
            try:
                content = self._fetch(f"{mirror}{file}.gz", limit=_FILES[name][0] + 1)
                if _is_whole(name, content):
                    return content
                error = "sent something else"
            except HTTPError as caught:
                caught.close()  # it is the server's answer, still open
                error = caught
            except (OSError, http.client.HTTPException, zlib.error) as caught:
                error = caught
            errors.append(f"{urlsplit(mirror).netloc}: {error}")
        raise ConnectionError(f"no mirror gave {file} ({'; '.join(errors)})")

    def _fetch(self, url: str, limit: int) -> bytes:
        """Unpacks while it receives, up to the limit, so that a gzip bomb stays small."""
        unzip, content = zlib.decompressobj(wbits=31), bytearray()  # 31: gzip
        end = self.received + 2 * limit  # for a stream that goes on and unpacks to nothing
        with urlopen(Request(url, headers={"User-Agent": "mcbn"}), timeout=_PATIENCE / 3) as answer:
            # read1 returns what is there, so that a trickle of bytes is noticed.
            while not unzip.eof and len(content) < limit and (chunk := answer.read1(1 << 16)):
                if self.cancelled.is_set():
                    raise TimeoutError("cancelled")
                if self.received > end:
                    break
                self.received += len(chunk)
                content += unzip.decompress(chunk, limit - len(content))
        return bytes(content)

    def _place(self, path: Path, content: bytes) -> None:
        part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            if not self.cancelled.is_set():
                part.replace(path)
        except OSError as error:
            # Another process may have placed its own and deleted this one's part.
            if not (isinstance(error, FileNotFoundError) and path.exists()):
                raise OSError(error.errno, f"{path} cannot be written: {error.strerror}") from error
        finally:
            with suppress(OSError):
                part.unlink()
