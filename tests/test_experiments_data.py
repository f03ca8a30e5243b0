import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from mcbn.data import files
from mcbn.experiments.data import DATA_SETS, DataSet, checksum, load

ROWS = "1 2 9\n3 4 8\n5 7 7\n"
FEATURES = torch.tensor([[1, 2], [3, 4], [5, 7]], dtype=torch.float64)
TARGET = torch.tensor([9, 8, 7], dtype=torch.float64)


@pytest.fixture
def known(monkeypatch):
    """A data set of that name whose numbers are the ones above."""
    known = DataSet("known", checksum(FEATURES, TARGET), "http://127.0.0.1:1/known")
    monkeypatch.setitem(DATA_SETS, "known", known)
    monkeypatch.setattr(files, "_PATIENCE", 2.0)
    return known


@pytest.fixture
def serve():
    servers = []

    def start(content, seconds=0.0):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(seconds)
                self.send_response(200 if content else 404)
                self.end_headers()
                with suppress(BrokenPipeError):  # the client has given up
                    self.wfile.write(content.encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/known"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def put(root, text, name="known"):
    path = Path(root, "uci", f"{name}.txt")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_a_table_is_read_and_its_target_set_apart(known, tmp_path, monkeypatch):
    put(tmp_path, ROWS)
    monkeypatch.setenv("MCBN_DATA", str(tmp_path))
    found, features, target = load("known")
    assert found is known
    assert torch.equal(features, FEATURES)
    assert torch.equal(target, TARGET)


def test_a_tilde_is_the_home_folder(known, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "data").mkdir()
    put(tmp_path / "data", ROWS)
    (tmp_path / "mine.txt").write_text(ROWS)
    assert torch.equal(load("known", "~/data")[1], FEATURES)
    assert torch.equal(load("~/mine.txt")[1], FEATURES)
    monkeypatch.setenv("MCBN_DATA", "~/data")
    assert torch.equal(load("known")[1], FEATURES)


def test_a_column_may_be_left_out_and_the_separator_does_not_matter(known, tmp_path, monkeypatch):
    monkeypatch.setitem(DATA_SETS, "known", replace(known, target=1, left_out=(2,)))
    put(tmp_path, "a;b;c;d\n1;9;0;2\n3;8;0;4.0\n5;7;0;7\n")
    _, features, target = load("known", tmp_path)
    assert torch.equal(features, FEATURES)
    assert torch.equal(target, TARGET)


@pytest.mark.parametrize("text", [ROWS.replace("7\n", "7.5\n"), ROWS + "1 2 3\n"])
def test_other_numbers_are_refused(known, tmp_path, text):
    put(tmp_path, text)
    with pytest.raises(
        ValueError, match=r"known\.txt does not hold the numbers of known; their SHA"
    ):
        load("known", tmp_path)


def test_what_is_not_there_is_fetched_once(known, tmp_path, monkeypatch, serve):
    monkeypatch.setitem(DATA_SETS, "known", replace(known, url=serve(ROWS)))
    assert torch.equal(load("known", tmp_path)[1], FEATURES)
    assert [path.name for path in tmp_path.glob("uci/*")] == ["known.txt"]
    monkeypatch.setitem(DATA_SETS, "known", known)  # nobody answers at this address
    assert torch.equal(load("known", tmp_path)[1], FEATURES)


@pytest.mark.parametrize(
    ("content", "seconds", "told"),
    [
        ("1 2 3\n", 0, "other numbers"),
        ("<html>", 0, "has no row"),
        ("1\n2\n", 0, "has 1 columns, wanted more"),
        (None, 0, "404"),
        (ROWS, 5, "time"),
    ],
)
def test_what_cannot_be_fetched_leaves_nothing_behind(
    known, tmp_path, monkeypatch, serve, content, seconds, told
):
    url = serve(content or "", seconds)
    monkeypatch.setitem(DATA_SETS, "known", replace(known, url=url))
    start = time.monotonic()
    with pytest.raises(
        OSError, match=f"known.txt is not there, and {url} gave nothing of use .*{told}"
    ):
        load("known", tmp_path)
    assert time.monotonic() - start < 4
    assert not list(tmp_path.glob("uci/*"))


def test_a_machine_without_a_network_is_told_where_the_file_belongs(known, tmp_path):
    with pytest.raises(OSError, match=r"known.txt is not there, and http.*put the file there"):
        load("known", tmp_path)


def test_a_path_is_a_table_and_another_name_is_refused(tmp_path):
    path = put(tmp_path, ROWS, "mine")
    found, features, target = load(str(path))
    assert (found.sha256, found.width, found.tau_bounds) == (None, 50, None)
    assert torch.equal(features, FEATURES)
    assert torch.equal(target, TARGET)
    with pytest.raises(
        ValueError, match="Given 'yaht', wanted the path of a table or one of boston"
    ):
        load("yaht")


def test_diabetes_comes_with_scikit_learn():
    _, features, target = load("diabetes")
    assert (features.shape, target.min().item()) == ((442, 10), 25)


def test_each_data_set_of_the_paper_is_pinned():
    assert len(DATA_SETS) == 8
    for name, data_set in DATA_SETS.items():
        assert data_set.name == name
        assert len(data_set.sha256) == 64
        assert data_set.url.startswith("https://")


@pytest.mark.skipif(
    not Path(os.environ.get("MCBN_DATA", ""), "uci").is_dir(), reason="MCBN_DATA holds no uci"
)
@pytest.mark.parametrize(
    ("name", "shape"),
    [("boston", (506, 13)), ("concrete", (1030, 8)), ("energy", (768, 8)), ("wine", (1599, 11))],
)
def test_the_real_files_hold_the_papers_numbers(name, shape):
    _, features, target = load(name)
    assert features.shape == shape
    assert target.shape == shape[:1]
