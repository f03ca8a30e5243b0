"""Killed runs, runs side by side, full and read-only disks: no half file is taken for whole."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
import test_datamodules as digits

from mcbn.data import files
from mcbn.data.digits import MNISTDataModule

tiny, serve = digits.tiny, digits.serve

# Processes are forked off one that has torch already, so that many can be killed in a short time.
CHILD = """
import json, os, random, signal, sys, time
from pathlib import Path
from mcbn.data import files

root, pinned, url = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
files._FILES.update(pinned)
files._MIRRORS["MNIST"] = [url + "/MNIST/"]


def fetch(root=root):
    files.fetch_missing(root, files.MNIST, patient=True)


def start(work, *args):
    child = os.fork()
    if not child:
        code = 1
        try:
            work(*args)
            code = 0
        finally:
            os._exit(code)
    return child


def kill_at_random(within, work, *args):
    child = start(work, *args)
    time.sleep(random.uniform(0, within))
    os.kill(child, signal.SIGKILL)
    print(os.waitpid(child, 0)[1])


def write_slowly(path, content):
    with path.open("wb", buffering=0) as file:
        for i in range(10):
            file.write(content[i * len(content) // 10 : (i + 1) * len(content) // 10])
            time.sleep(0.005)


"""


def slowly(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for i in range(10):
            handler.wfile.write(content[i * len(content) // 10 : (i + 1) * len(content) // 10])
            time.sleep(0.005)
    except OSError:  # the other end was killed
        pass


def run(code: str, root: Path, url: str, *wrapper: str) -> subprocess.CompletedProcess[str]:
    pinned = json.dumps({name: files._FILES[name] for name in files.MNIST})
    return subprocess.run(
        [*wrapper, sys.executable, "-c", CHILD + code, str(root), pinned, url],
        capture_output=True,
        text=True,
        timeout=120,
    )


def of_mnist(contents: dict[str, bytes]) -> dict[str, bytes]:
    return {name: contents[name] for name in files.MNIST}


# Killed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_downloads_killed_at_random_leave_no_half_file(tiny, tmp_path, serve):
    done = run(
        """
random.seed(0)
Path.write_bytes = write_slowly
for i in range(12):
    kill_at_random(0.5, fetch, root / str(i))
""",
        tmp_path,
        serve(slowly),
    )
    assert done.stdout.split().count("9") >= 6, done.stderr  # killed, not finished before
    for i in range(12):
        root = tmp_path / str(i)
        left = digits.files_under(root)
        assert all(left[name] == tiny[name] for name in files.MNIST if name in left)
        assert all(name.endswith(".part") for name in set(left) - set(files.MNIST))
        files.fetch_missing(root, files.MNIST, patient=True)
        assert digits.files_under(root) == of_mnist(tiny)


def test_a_kill_in_the_middle_of_a_write_is_cleaned_up(tiny, tmp_path, serve):
    url = serve(digits.send)
    done = run(
        """
def write_half(path, content):
    with path.open("wb", buffering=0) as file:
        file.write(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

Path.write_bytes = write_half
fetch()
""",
        tmp_path,
        url,
    )
    assert done.returncode == -9
    first = files.MNIST[0]
    [(name, half)] = digits.files_under(tmp_path).items()
    assert name.startswith(f"{first}.")
    assert name.endswith(".part")
    assert half == tiny[first][: len(tiny[first]) // 2]
    assert len(MNISTDataModule(tmp_path, source="full").dataset("train")) == 60
    assert digits.files_under(tmp_path) == of_mnist(tiny)


def test_what_a_kill_left_beside_a_whole_file_is_deleted_and_nothing_else(tiny, tmp_path, serve):
    digits.write(tmp_path, of_mnist(tiny))
    first = tmp_path / files.MNIST[0]
    first.with_name(f"{first.name}.0123.part").write_bytes(b"half")
    kept = [first.with_name(name) for name in ("notes.part", f"{first.name}.part", "other.0.part")]
    for path in kept:
        path.touch()
    files.fetch_missing(tmp_path, files.MNIST, patient=True)
    names = {path.relative_to(tmp_path).as_posix() for path in kept}
    assert set(digits.files_under(tmp_path)) == set(files.MNIST) | names


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256(content).hexdigest()
        for name, content in digits.files_under(folder).items()
        if not name.endswith(".pyc")
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_sample_whose_unpacking_was_killed_is_whole(tmp_path):
    before = fingerprint(files.SHIPPED)
    done = run(
        """
random.seed(0)

def unpack_for_ever():
    while True:
        for name in files.SHIPPED_MNIST + files.SHIPPED_FASHION:
            files.read(files.SHIPPED, name)

os.chdir(root)
for _ in range(8):
    kill_at_random(0.2, unpack_for_ever)
""",
        tmp_path,
        "",
    )
    assert done.stdout.split() == ["9"] * 8, done.stderr
    assert fingerprint(files.SHIPPED) == before
    assert digits.files_under(tmp_path) == {}
    assert len(MNISTDataModule(source="sample").dataset("train")) == 4000


# Side by side


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_that_download_into_one_folder_all_succeed(tiny, tmp_path, serve):
    done = run(
        """
Path.write_bytes = write_slowly
children = [start(fetch) for _ in range(5)]
time.sleep(0.2)
os.kill(children.pop(), signal.SIGKILL)
print(*[os.waitpid(child, 0)[1] for child in children])
""",
        tmp_path,
        serve(slowly),
    )
    assert done.stdout.split() == ["0"] * 4, done.stderr
    files.fetch_missing(tmp_path, files.MNIST, patient=True)
    assert digits.files_under(tmp_path) == of_mnist(tiny)


def test_a_part_that_another_process_cleared_away_is_not_missed(tiny, tmp_path, serve, monkeypatch):
    serve(digits.send)
    write = Path.write_bytes

    def write_and_lose(part: Path, content: bytes) -> int:
        """As if another process had placed the same file just now, and cleaned up."""
        name = part.relative_to(tmp_path).as_posix().split(".")[0]
        return write(tmp_path / name, content)

    monkeypatch.setattr(Path, "write_bytes", write_and_lose)
    files.fetch_missing(tmp_path, files.MNIST, patient=True)
    assert digits.files_under(tmp_path) == of_mnist(tiny)


# Disks that are full or read-only


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits and mounts")
def test_a_disk_that_takes_no_file_is_named(tiny, tmp_path, serve):
    # The two file systems are seen by this one process only.
    script = """
        mkdir "$1/small" "$1/read-only" "$1/limited" &&
        mount -t tmpfs -o size=16k none "$1/small" &&
        mount -t tmpfs -o ro none "$1/read-only" && shift && exec "$@"
    """
    mounted = ["unshare", "-rm", "sh", "-c", script, "sh"]
    if subprocess.run([*mounted, str(tmp_path), "true"], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    for folder in tmp_path.iterdir():
        folder.rmdir()
    done = run(
        """
import resource

for name in ("small", "read-only", "limited"):
    if name == "limited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
    try:
        fetch(root / name)
    except OSError as error:
        print(error)
    print([path.name for path in root.rglob("*") if path.is_file()])
""",
        tmp_path,
        serve(digits.send),
        *mounted,
        str(tmp_path),
    )
    reasons = ("No space left on device", "Read-only file system", "File too large")
    said = done.stdout.splitlines()
    assert said[1::2] == ["[]"] * 3, done.stderr
    for line, folder, reason in zip(
        said[::2], ("small", "read-only", "limited"), reasons, strict=True
    ):
        name = tmp_path / folder / files.MNIST[0]
        assert line.endswith(f"{name} cannot be written: {reason}")
