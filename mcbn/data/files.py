"""The files of images: what is read, where it comes from, and that it is what it should be."""

from __future__ import annotations

import gzip
import hashlib
import os
import sys
import tempfile
import threading
import uuid
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

# Size in bytes and SHA-256. They pin a file to its last bit: nothing is believed that a header
# says, nothing of another size is read, and it does not matter which mirror a file came from.
_CHECKSUMS = Path(__file__).with_name("checksums.txt").read_text()
_FILES = {
    name: (int(size), sha256) for sha256, size, name in map(str.split, _CHECKSUMS.splitlines())
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


def read(root: Path, name: str) -> Tensor:
    """A file of images ``(n, 28, 28)`` or labels ``(n,)``, as uint8.

    Raises:
        ValueError: The file is not bit for bit the one it should be, or there should be none of
            this name. The message names it.
    """
    (size, sha256), path = _pinned(name), root / name
    found = path.stat().st_size
    content = bytearray(path.read_bytes()) if found == size else bytearray()
    if hashlib.sha256(content).hexdigest() != sha256:
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
    """Downloads those of the files that are not under root, as :func:`fetch` does.

    Raises:
        OSError: As ``fetch`` says.
        ValueError: There is no such file in the datasets.
    """
    wanted: list[Wanted] = []
    for name in names:
        (size, sha256), (folder, _, file) = _pinned(name), name.split("/")
        urls = [f"{mirror}{file}.gz" for mirror in _MIRRORS[folder]]
        wanted.append(Wanted(root / name, urls, size, sha256))
    fetch(wanted, patient=patient)


@dataclass(frozen=True)
class Wanted:
    """A file to fetch.

    Attributes:
        path: Where it belongs.
        urls: Where it may be had; what ends in ``.gz`` is unpacked.
        size: The most bytes that it has, unpacked.
        sha256: Of its content, unpacked; None where ``check`` alone decides.
        check: Raises a ValueError if the file at a path is not the one that is wanted.
    """

    path: Path
    urls: Sequence[str]
    size: int
    sha256: str | None = None
    check: Callable[[Path], None] = lambda path: None


def fetch(wanted: Sequence[Wanted], *, patient: bool) -> None:
    """Downloads those of the files that are not there.

    Gives up after 15 seconds in all; a patient caller goes on as long as every 15 seconds bring
    256 KiB. A file appears under its name whole and checked, or not at all. Once all are there,
    what killed runs left of them is deleted.

    Raises:
        TimeoutError: It took too long.
        ConnectionError: No address gave a file.
        OSError: A file cannot be written.
    """
    if absent := [file for file in wanted if not file.path.exists()]:
        download = _Download(absent, patient)
        download.start()
        while download.is_alive():
            before = download.received
            download.join(_PATIENCE)
            if download.is_alive() and not (patient and download.received - before >= _SLOWEST):
                download.cancelled.set()
                raise TimeoutError(f"the download was given up after {_PATIENCE:g} seconds")
        if download.error:
            raise download.error
    for file in wanted:
        for part in file.path.parent.glob(f"{file.path.name}.*.part"):
            with suppress(OSError):
                part.unlink()


class _Download(threading.Thread):
    """A thread of its own, because no time-out reaches a name server that does not answer.

    It is what pooch writes to as well: it unpacks up to a limit, so that a gzip bomb stays small.
    """

    content: IO[bytes]
    limit: int
    end: int
    unzip: Any

    def __init__(self, wanted: Sequence[Wanted], patient: bool) -> None:
        super().__init__(daemon=True)
        self.wanted, self.patient = wanted, patient
        self.received = 0
        self.cancelled = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            # Elsewhere, since pooch makes the folder before it knows whether there is anything to
            # put there, and the file for its owner only.
            with tempfile.TemporaryDirectory() as folder:
                for file in self.wanted:
                    self._place(file.path, self._fetch_from_any_mirror(file, folder))
        except Exception as error:  # raised again by the caller, in its own thread
            self.error = error

    def _fetch_from_any_mirror(self, file: Wanted, folder: str) -> bytes:
        import pooch

        pooch.get_logger().setLevel("WARNING")  # else it prints a line for each address
        name, errors = file.path.name, list[str]()
        for url in file.urls:
            try:
                receive: Any = partial(self._receive, file.size)  # pooch's type has wrong names
                path = Path(pooch.retrieve(url, file.sha256, name, folder, downloader=receive))
                file.check(path)
                return path.read_bytes()
            except (OSError, ValueError, zlib.error) as error:
                if self.cancelled.is_set():
                    raise
                # What a server or the network did wrong is an OSError without a number.
                if isinstance(error, OSError) and error.errno:
                    raise _unwritable(folder, error) from error
                other = file.sha256 and type(error) is ValueError
                reason = "sent something else" if other else _reason(error)
                errors.append(f"{urlsplit(url).netloc}: {reason}")
        raise ConnectionError(f"no mirror gave {name} ({'; '.join(errors)})")

    def _receive(self, limit: int, url: str, output_file: str, _: Any) -> None:
        import pooch

        with open(output_file, "wb") as self.content, ExitStack() as opened:

            def keep(answer: Any, **_: Any) -> None:  # pooch does not close one that it cuts short
                opened.callback(answer.close)

            self.limit, self.end = limit, self.received + 2 * limit
            self.unzip = zlib.decompressobj(wbits=31) if url.endswith(".gz") else None  # 31: gzip
            pooch.HTTPDownloader(
                progressbar=self.patient and sys.stderr.isatty(),
                timeout=_PATIENCE / 3,
                # A server that packs what it sends would be unpacked once too often.
                headers={"User-Agent": "mcbn", "Accept-Encoding": "identity"},
                hooks={"response": keep},
            )(url, self, None)

    def write(self, chunk: bytes) -> None:
        if self.cancelled.is_set():
            raise TimeoutError("cancelled")
        self.received += len(chunk)
        if self.unzip:
            chunk = self.unzip.decompress(chunk, self.limit + 1)
        self.limit -= self.content.write(chunk)
        if self.limit < 0 or self.received > self.end:  # the latter may unpack to nothing, for ever
            raise ValueError("sent too much")

    def flush(self) -> None:
        self.content.flush()

    def _place(self, path: Path, content: bytes) -> None:
        if self.cancelled.is_set():
            return
        try:
            write_whole(path, content)
        except OSError as error:
            # Another process may have placed its own and deleted this one's part.
            if not (isinstance(error, FileNotFoundError) and path.exists()):
                raise _unwritable(path, error) from error


def write_whole(path: Path, content: bytes) -> None:
    """The file has its old content or the new one, at any moment."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


def _unwritable(path: str | Path, error: OSError) -> OSError:
    return OSError(error.errno, f"{path} cannot be written: {error.strerror}")


def _reason(error: Exception) -> str:
    """The last words of what requests says, which begin with the address once or twice."""
    return str(getattr(error.args[0], "reason", error) if error.args else error).rsplit("): ")[-1]
