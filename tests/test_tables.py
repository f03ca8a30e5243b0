import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from mcbn.data.tables import TableDataModule, read_table

PARTS = "train", "val", "test"


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "table.txt"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def in_own_unit(datamodule):
    """All rows of all parts, features and target, as they are in the table."""
    features, target = (
        torch.cat(tensors)
        for tensors in zip(*(datamodule.dataset(part).tensors for part in PARTS), strict=True)
    )
    return features.numpy(), (target * datamodule.target_std + datamodule.target_mean).numpy()


def test_parts_hold_every_patient_once_and_only_the_training_is_standardized():
    data = load_diabetes(scaled=False)
    datamodule = TableDataModule()
    _, target = in_own_unit(datamodule)
    np.testing.assert_allclose(np.sort(target[:, 0]), np.sort(data["target"]), rtol=1e-5)
    assert [len(datamodule.dataset(part)) for part in PARTS] == [266, 88, 88]
    assert datamodule.num_features == 10
    assert datamodule.names == [*data["feature_names"], "progression"]
    features, target = datamodule.dataset("train").tensors
    for values in (features, target):
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0, correction=0), torch.ones(values.shape[1]))
    assert abs(datamodule.dataset("test").tensors[0].mean()) > 1e-3


def test_standardization_is_that_of_scikit_learn(write):
    table = np.random.default_rng(0).normal([5, -3, 100], [0.1, 7, 30], size=(40, 3))
    path = write("\n".join(" ".join(f"{value:.12g}" for value in row) for row in table))
    datamodule = TableDataModule(path, target=1)
    rows = datamodule.dataset("train").tensors[1] * datamodule.target_std + datamodule.target_mean
    chosen = [int(np.abs(table[:, 1] - target).argmin()) for target in rows[:, 0].tolist()]
    assert len(set(chosen)) == 24
    scaler = StandardScaler().fit(table[chosen])
    for part in PARTS:
        features, target = datamodule.dataset(part).tensors
        own = target[:, 0].numpy() * datamodule.target_std + datamodule.target_mean
        places = [int(np.abs(table[:, 1] - value).argmin()) for value in own]
        expected = scaler.transform(table[places])
        np.testing.assert_allclose(features, expected[:, [0, 2]], atol=1e-5)
        np.testing.assert_allclose(target[:, 0], expected[:, 1], atol=1e-5)


def test_the_seed_decides_the_split_and_nothing_else():
    torch.manual_seed(1)
    first = TableDataModule(seed=3).dataset("test").tensors[0]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(TableDataModule(seed=3).dataset("test").tensors[0], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(TableDataModule(seed=4).dataset("test").tensors[0], first)


def test_loaders_give_batches():
    datamodule = TableDataModule(batch_size=50)
    batches = list(datamodule.train_dataloader())
    assert [tuple(features.shape) for features, _ in batches] == [(50, 10)] * 5
    assert all(target.shape == (50, 1) for _, target in batches)
    for part in ("val", "test", "predict"):
        loader = getattr(datamodule, f"{part}_dataloader")()
        [(features, target)] = loader
        assert features.shape == (88, 10)
        assert target.dtype == torch.float32
    assert len(next(iter(TableDataModule(batch_size=10_000).train_dataloader()))[0]) == 266


def test_a_constant_column_stays_finite(write):
    path = write("\n".join(f"{i} 0.1 {i % 3}" for i in range(30)))
    datamodule = TableDataModule(path)
    features, _ = datamodule.dataset("train").tensors
    np.testing.assert_allclose(features[:, 1], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("1 2\n3 4", ["0", "1"]),
        ("  1\t2 \n\n   \n3   4\n", ["0", "1"]),
        ("1,2\n3, 4\n", ["0", "1"]),
        ('"fixed acidity";"p,H"\n1;2\r\n3;4\n', ["fixed acidity", "p,H"]),
        ("\ufeffa,b\n1,2\n,\n3,4e0\n", ["a", "b"]),
    ],
)
def test_tables_are_read_in_their_usual_forms(write, text, names):
    found, table = read_table(write(text))
    assert found == names
    assert table.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n\n3 4 5\n", "table.txt, line 3: 3 numbers, wanted 2"),
        ("a,b,c\n1,2\n", "line 2: 2 numbers, wanted 3"),
        ("1,2\n3,?\n", r"line 2: '\?' is no finite number"),
        ("1,2\n3,nan\n", "line 2: 'nan' is no finite"),
        ("1,2\n,4\n", "line 2: '' is no finite"),
        ("a,b\nc,d\n1,2", "line 2: 'c' is no finite"),
        ("nan nan\n1 2\n", "line 1: 'nan' is no finite"),
        ("a,b\n\n", "table.txt has no row"),
        ("", "table.txt has no row"),
    ],
)
def test_a_line_that_is_no_row_is_named(write, text, message):
    with pytest.raises(ValueError, match=message):
        read_table(write(text))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 3}, "target=3, but the table has 3 columns"),
        ({"target": -4}, "target=-4"),
        ({"test_split": 0.01}, "10 rows make 8 for training, 2 for validation and 0 for the test"),
        ({"val_split": 0.01}, "0 for validation"),
    ],
)
def test_what_the_table_cannot_give_is_refused(write, options, message):
    path = write("\n".join("1 2 3" for _ in range(10)))
    with pytest.raises(ValueError, match=message):
        TableDataModule(path, **options).setup()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").write_text("1,2\n3,4\n")
    for path in ("~/t.csv", Path("~/t.csv")):
        assert read_table(path)[1].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    (tmp_path / "t.csv").write_text("1,2\n3,4\n" * 5)
    assert TableDataModule("~/t.csv").dataset("train").tensors[0].shape == (6, 1)


def test_a_file_whose_name_begins_with_a_tilde_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~nobody's.csv").write_text("1,2\n3,4\n")
    assert read_table("~nobody's.csv")[1].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install scikit-learn.*path="):
        TableDataModule().setup()


def test_a_data_frame_gives_what_its_text_gives(write):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"x": rng.normal(size=20), "n": np.arange(20), "flag": [True, False] * 10})
    frame["y"] = pd.array(rng.integers(9, size=20), dtype="Int64")
    of_frame = TableDataModule(frame, target=1)
    of_text = TableDataModule(write(frame.astype(float).to_csv(index=False)), target=1)
    for part in PARTS:
        for left, right in zip(
            of_frame.dataset(part).tensors, of_text.dataset(part).tensors, strict=True
        ):
            torch.testing.assert_close(left, right)
    assert of_frame.names == of_text.names == ["x", "flag", "y", "n"]


@pytest.mark.parametrize("cell", [np.nan, np.inf, pd.NA, None, "3", pd.Timestamp("2020-01-01")])
def test_a_cell_of_a_data_frame_that_is_no_number_is_named(cell):
    frame = pd.DataFrame({"x": range(9), "y": range(9)}, dtype=object)
    frame.loc[4, "y"] = cell
    with pytest.raises(ValueError, match=r"row 4 of the column 'y': '.+' is no finite number"):
        TableDataModule(frame).setup()
    with pytest.raises(ValueError, match="0 rows make 0 for training"):
        TableDataModule(frame[:0]).setup()
