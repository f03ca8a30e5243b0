import io
import logging
import os
import re
import subprocess
import sys
import warnings

import lightning.pytorch as pl
import pytest
import rich
import torch
from bs4 import BeautifulSoup
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mcbn import ClassificationRoutine, Trainer, optim_lenet
from mcbn.results import ResultTables, Table, Tables

RESULTS = [
    {
        "test/cls/Acc": 0.9716,
        "test/cls/NLL": 0.09141,
        "test/cls/Brier": 0.0424,
        "test/cal/MCE": 0.25,
        "test/cal/aECE": 0.00414,
        "test/cal/ECE": 0.00451,
        "test/sc/Cov@5Risk": 1.0,
        "test/sc/AURC": 0.00162,
        "test/cplx/flops": 72_104_960.0,
        "test/cplx/params": 44_470.0,
    }
]


@pytest.fixture
def console(monkeypatch):
    """What is printed on rich's console, as the list of the printed objects."""
    printed = []
    fake = Console(width=100)
    monkeypatch.setattr(fake, "print", lambda *objects, **_: printed.extend(objects))
    monkeypatch.setattr(rich, "_console", fake)
    return printed


@pytest.fixture
def routine():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    return ClassificationRoutine(3, model, nn.CrossEntropyLoss(), optim_lenet)


@pytest.fixture
def loader():
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(40, 2), torch.arange(40) % 3), batch_size=8)


def test_four_tables_in_the_units_that_people_use():
    tables = ResultTables(RESULTS).tables
    assert [(table.caption, *table.header) for table in tables] == [
        ("Classification", "Metric", "Value"),
        ("Calibration", "Metric", "Value"),
        ("Selective classification", "Metric", "Value"),
        ("Complexity", "Metric", "Value"),
    ]
    assert [tuple(row) for table in tables for row in table.rows] == [
        ("Acc", "97.16 %"),
        ("Brier", "0.0424"),
        ("NLL", "0.0914"),
        ("ECE", "0.451 %"),
        ("aECE", "0.414 %"),
        ("MCE", "25.00 %"),
        ("AURC", "0.162 %"),
        ("Cov@5Risk", "100.00 %"),
        ("flops", "72.10 M"),
        ("params", "44.47 K"),
    ]


@pytest.mark.parametrize(
    ("number", "shown"), [(850.0, "850"), (1e3, "1.00 K"), (2.5e9, "2.50 G"), (0.0, "0")]
)
def test_counts_are_shortened(number, shown):
    assert ResultTables([{"test/cplx/flops": number}]).tables[0].rows == [["flops", shown]]


def test_results_side_by_side_leave_a_gap_where_one_has_no_value():
    mcbn = [{"test/cls/MI": 0.0124, "test/cls/Acc": 0.985}]
    table = ResultTables({"plain": [{"test/cls/Acc": 0.98}], "MCBN": mcbn}).tables[0]
    assert table.header == ["Metric", "plain", "MCBN"]
    assert table.rows == [["Acc", "98.00 %", "98.50 %"], ["MI", "-", "0.0124"]]


def test_metrics_of_others_get_tables_too():
    tables = ResultTables([{"loss": 0.25, "ood/AUROC": 0.5, "test/cls/Acc": 1.0}]).tables
    assert [(table.caption, table.rows) for table in tables] == [
        ("Classification", [["Acc", "100.00 %"]]),
        ("Other", [["loss", "0.2500"]]),
        ("ood", [["AUROC", "0.5000"]]),
    ]


def test_each_loader_has_a_column():
    loaders = [
        {"test/cls/Acc/dataloader_idx_0": 0.5, "test/cplx/flops/dataloader_idx_0": 1e3},
        {"test/cls/Acc/dataloader_idx_1": 0.25, "loss": 2.0},
    ]
    acc, flops, loss = ResultTables(loaders).tables
    assert acc.header == ["Metric", "Value, loader 0", "Value, loader 1"]
    assert acc.rows == [["Acc", "50.00 %", "25.00 %"]]
    assert flops.rows == [["flops", "1.00 K", "-"]]
    assert loss.rows == [["loss", "2.0000", "2.0000"]]
    both = ResultTables({"plain": [{"test/cls/Acc": 1.0}], "MCBN": loaders}).tables[0]
    assert both.header == ["Metric", "plain", "MCBN, loader 0", "MCBN, loader 1"]
    assert both.rows == [["Acc", "100.00 %", "50.00 %", "25.00 %"]]


def test_a_test_of_two_loaders_prints_a_column_for_each(console, routine, loader):
    Trainer().test(routine, [loader, loader])
    [tables] = console
    header, [_, first, second] = tables.tables[0].header, tables.tables[0].rows[0]
    assert header == ["Metric", "Value, loader 0", "Value, loader 1"]
    assert first == second


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, routine, loader):
    monkeypatch.setenv("HOME", str(tmp_path))
    trainer = Trainer(max_steps=1, enable_model_summary=False, default_root_dir="~/runs")
    trainer.fit(routine, loader)
    trainer.save_checkpoint("~/runs/c.ckpt")
    assert (tmp_path / "runs" / "c.ckpt").exists()
    expected = trainer.test(routine, loader, verbose=False)
    nn.init.zeros_(routine.model[2].weight)
    assert trainer.test(routine, loader, ckpt_path="~/runs/c.ckpt", verbose=False) == expected


# What narrow terminals with few signs get: a file of each encoding.
PRINTS = """
import contextlib, sys
import rich
import torch
from mcbn import ClassificationRoutine, Trainer, optim_lenet
from mcbn.data.digits import _say
from mcbn.experiments.table import score_table, selection_table
from mcbn.experiments.uci import main, read_results
from mcbn.results import Table, Tables

class Größe(torch.nn.Linear):
    pass

def show():
    cells = "far – out, |x| ≈ 4", "1.25±0.5 ° 中 ∞"
    tables = Tables([Table("Größe ±", ("λ → τ", "“x”"), [cells])])
    print(tables)
    rich.print(tables)
    results = read_results()
    rich.print(score_table(results), selection_table(results))
    print(score_table(results))
    x = torch.utils.data.TensorDataset(torch.randn(8, 2), torch.arange(8) % 2)
    loader = torch.utils.data.DataLoader(x, batch_size=4)
    routine = ClassificationRoutine(2, Größe(2, 2), torch.nn.CrossEntropyLoss(), optim_lenet)
    trainer = Trainer(max_steps=1, accelerator="cpu")
    trainer.fit(routine, loader)
    trainer.test(routine, [loader, loader])
    trainer.validate(routine, loader)
    _say("Using the sample, as /home/Zoë/\\udcc3… is missing.")
    with contextlib.suppress(SystemExit):
        main(["--help"])
    print("the end")

for encoding in ("ascii", "latin-1", "utf-8"):
    with open(encoding, "w", encoding=encoding) as file, contextlib.redirect_stdout(file):
        show()
"""


SIGNS = {
    "ascii": ("Grosse +/-", "lambda -> tau", "far - out, |x| ~ 4", "1.25+/-0.5  deg ? ?"),
    "latin-1": ("Größe ±", "lambda -> tau", "far - out, |x| ~ 4", "1.25±0.5 ° ? ?"),
    "utf-8": ("Größe ±", "λ → τ", "far – out, |x| ≈ 4", "1.25±0.5 ° 中 ∞"),
}


def test_a_terminal_gets_signs_that_it_has(tmp_path):
    (tmp_path / "script.py").write_text(PRINTS, encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "COLUMNS": "60"}
    command = [sys.executable, "script.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    for encoding, cells in SIGNS.items():
        said = (tmp_path / encoding).read_text(encoding)
        assert said.rstrip().endswith("the end")
        for cell in cells:
            assert cell in said, encoding


def test_text_and_html_hold_the_same_cells():
    tables = ResultTables({"plain": RESULTS, "<b>": RESULTS})
    soup = BeautifulSoup(tables._repr_html_(), "html.parser")
    assert soup.div["class"] == ["mcbn-results"]
    text = str(tables)
    for drawn, table in zip(soup.find_all("table"), tables.tables, strict=True):
        assert drawn.caption.text == table.caption
        assert [th.text for th in drawn.thead.find_all("th", scope="col")] == table.header
        body = [
            [row.find("th", scope="row").text, *(td.text for td in row.find_all("td"))]
            for row in drawn.tbody.find_all("tr")
        ]
        assert body == table.rows
        for row in table.rows:
            assert re.search(r"\W+".join(map(re.escape, row)), text)
    assert soup.b is None


def test_a_notebook_gets_both_forms():
    from IPython.core.formatters import DisplayFormatter

    bundle, _ = DisplayFormatter().format(Tables([Table("Caption", ["a", "b"], [["1", "2"]])]))
    assert "<caption>Caption</caption>" in bundle["text/html"]


def test_training_shows_the_modules_and_their_parameters_once(console, capfd, routine, loader):
    Trainer(max_steps=2).fit(routine, loader)
    [summary] = console
    assert summary.tables[0].rows == [
        ("0: Linear", "24"),
        ("1: ReLU", "0"),
        ("2: Linear", "27"),
        ("Sequential, in all", "51"),
    ]
    assert capfd.readouterr() == ("", "")


def terminal(monkeypatch):
    """Let the standard error be a terminal; give all that is written to it."""
    file = io.StringIO()
    monkeypatch.setattr(file, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", file)
    monkeypatch.setenv("TERM", "xterm")
    return file.getvalue


@pytest.mark.parametrize(
    ("limit", "shown"),
    [({"max_steps": 7}, "7/7"), ({"max_epochs": 3}, "15/15"), ({"max_steps": -1}, "1/?")],
)
def test_a_terminal_shows_how_far_a_training_is_and_then_no_more(
    console, monkeypatch, routine, loader, limit, shown
):
    class Endless(pl.Callback):
        """Until the bar without an end has been seen."""

        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.max_steps == trainer.max_epochs == -1

    written = terminal(monkeypatch)
    endless = {"max_epochs": -1} if limit == {"max_steps": -1} else {}
    Trainer(callbacks=[Endless()], **limit, **endless).fit(routine, loader)
    text = written()
    assert "Training" in text
    assert shown in text
    # The cursor goes up over the bar, and the line is erased.
    assert text.endswith("\x1b[1A\x1b[2K")


def test_a_bar_counts_batches_where_steps_take_several(console, monkeypatch, routine, loader):
    """Five batches an epoch, of which the last makes a step of its own."""
    written = terminal(monkeypatch)
    Trainer(max_epochs=2, accumulate_grad_batches=2).fit(routine, loader)
    assert "10/10" in written()


def test_a_training_that_fails_takes_its_bar_along(console, monkeypatch, routine, loader):
    class Failing(pl.Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("no more")

    written = terminal(monkeypatch)
    with pytest.raises(RuntimeError, match="no more"):
        Trainer(max_steps=7, callbacks=[Failing()]).fit(routine, loader)
    assert written().endswith("\x1b[1A\x1b[2K")


def test_lightnings_bar_takes_the_place_of_ours(monkeypatch, routine, loader):
    monkeypatch.setattr(rich, "_console", Console())  # Lightning sets up another
    written = terminal(monkeypatch)
    Trainer(max_steps=7, enable_progress_bar=True).fit(routine, loader)
    assert "Training" not in written()


def test_a_test_prints_its_tables_once_and_returns_the_numbers(console, capfd, routine, loader):
    results = Trainer().test(routine, loader)
    [tables] = console
    assert tables.tables == ResultTables(results).tables
    assert len(tables.tables) == 4
    assert capfd.readouterr() == ("", "")


def test_nothing_at_all_is_printed_if_so_wanted(console, capfd, caplog, routine, loader):
    trainer = Trainer(max_steps=2, enable_model_summary=False)
    trainer.fit(routine, loader)
    trainer.validate(routine, loader, verbose=False)
    trainer.test(routine, loader, verbose=False)
    assert trainer.predict(routine, loader)[0].shape == (8, 3)
    assert console == []
    assert capfd.readouterr() == ("", "")
    assert not caplog.text


def test_lightnings_own_trainer_speaks_as_before(caplog):
    level = logging.getLogger("lightning.pytorch").level
    Trainer()
    assert not caplog.text
    assert logging.getLogger("lightning.pytorch").level == level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    assert "GPU available" in caplog.text


def test_real_warnings_come_through(routine, loader):
    pytest.importorskip("lightning", "2.6", reason="an older Lightning does not warn of this")
    trainer = Trainer(max_steps=1, enable_model_summary=False)
    routine.eval()
    with pytest.warns(UserWarning, match="eval mode at the start of training"):
        trainer.fit(routine, loader)


def test_lightnings_features_can_be_had(tmp_path, routine, loader):
    trainer = Trainer(
        max_epochs=1,
        enable_model_summary=False,
        enable_checkpointing=True,
        default_root_dir=tmp_path,
        logger=pl.loggers.CSVLogger(tmp_path),
        log_every_n_steps=1,
    )
    trainer.fit(routine, loader)
    [log] = tmp_path.rglob("metrics.csv")
    assert "train/loss" in log.read_text()
    assert list(tmp_path.rglob("*.ckpt"))
