"""
Deployment: from notebook to service
====================================

You have trained and wrapped a network, and now it has to run elsewhere: on a machine without the
training data, without PyTorch, within a few milliseconds, or on several GPUs. This page saves,
loads, exports and times a wrapper, and predicts with several processes. The network is a small
LeNet, trained on the 4,000 digits that come with the package and tested on the other 1,000. The
seed is 0.

The network to serve
--------------------

The network is trained for 200 steps and wrapped with 32 *estimators*. Each is the trained network,
normalized with the statistics of one mini-batch of 100 digits, as many as in a training step.
"""

# sphinx_gallery_tags = ["classification", "number of estimators", "speed"]

from lightning.pytorch import seed_everything
from torch import nn

from mcbn import ClassificationRoutine, MCBatchNorm, MNISTDataModule, Trainer, lenet, optim_lenet

seed_everything(0, verbose=False)
datamodule = MNISTDataModule(source="sample", batch_size=100)
routine = ClassificationRoutine(
    10, lenet(1, 10), nn.CrossEntropyLoss(), lambda model: optim_lenet(model, num_steps=200)
)
trainer = Trainer(max_steps=200, accelerator="cpu", devices=1, enable_model_summary=False)
trainer.fit(routine, datamodule=datamodule)

mc = MCBatchNorm(routine.model, num_estimators=32, mc_batch_size=100)
mc.fit(datamodule.train_dataloader()).eval()

# %%
# Save
# ----
#
# A wrapper is saved like any module, through its ``state_dict``. This includes the statistics of
# the estimators, so a wrapper that loads it is fitted and needs no training data.

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

temporary = TemporaryDirectory()
folder = Path(temporary.name)
torch.save(mc.state_dict(), folder / "mc.pt")

statistics = sum(value.numel() for name, value in mc.state_dict().items() if "mc_" in name)
parameters = sum(parameter.numel() for parameter in mc.parameters())
print(f"{parameters:,} parameters, and {statistics:,} statistics of the estimators")

# %%
# Load
# ----
#
# A wrapper of the same network with the same number of estimators can load the file, and predicts
# the same. ``weights_only=True`` is meant to read numbers and run no code. That is enough for your
# own files, but it once had `a vulnerability
# <https://github.com/pytorch/pytorch/security/advisories/GHSA-53q9-r3pm-6pq6>`_, so do not load
# files from strangers this way. Ask for `safetensors <https://pypi.org/project/safetensors/>`_
# files, a format that holds tensors and nothing else: ``save_file(mc.state_dict(), path)`` and
# ``load_state_dict(load_file(path))``.

loaded = MCBatchNorm(lenet(1, 10), num_estimators=32).eval()
loaded.load_state_dict(torch.load(folder / "mc.pt", weights_only=True))

images, labels = next(iter(datamodule.test_dataloader()))
with torch.no_grad():
    torch.testing.assert_close(loaded(images), mc(images))
    with loaded.deterministic():
        torch.testing.assert_close(loaded(images), routine.model.eval()(images))

# %%
# The plain network is included: within ``deterministic()`` the wrapper predicts as the network that
# it was made from.
#
# Export to ONNX
# --------------
#
# An ONNX file holds all estimators in one graph, takes any number of images, and runs without
# PyTorch. This cell needs ``pip install onnx onnxscript onnxruntime``. It exports the loaded
# wrapper, and compares the logits for one image and for 100.

import onnxruntime

program = torch.onnx.export(
    loaded.requires_grad_(False),
    (images[:3],),
    dynamo=True,
    dynamic_shapes={"args": ({0: torch.export.Dim("batch")},)},
    verbose=False,
)
program.save(folder / "mc.onnx")

session = onnxruntime.InferenceSession(folder / "mc.onnx")
name = session.get_inputs()[0].name
for count in (1, 100):
    (logits,) = session.run(None, {name: images[:count].numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), mc(images[:count]), rtol=1e-4, atol=1e-4)
    print(logits.shape)

# %%
# Choose the number of estimators
# -------------------------------
#
# A service often predicts for one image at a time, within a limited time. More estimators take
# longer. How many are worth it? Estimators are independent, so any :math:`S` of our 32 act like a
# wrapper with :math:`S`. The figure shows the negative log-likelihood (NLL) of the 1,000 test
# images against :math:`S`: the mean over the groups of :math:`S` into which the 32 are split.


from mcbn.metrics import negative_log_likelihood
from mcbn.plotting import plot_series
from mcbn.predictive import mean_probs


def nll(logits):
    return negative_log_likelihood(mean_probs(logits), test_labels).mean().item()


test_images, test_labels = map(torch.cat, zip(*datamodule.test_dataloader(), strict=True))
sizes = [1, 2, 4, 8, 16, 32]
with torch.no_grad():
    all_logits = mc(test_images)
    with mc.deterministic():
        plain_nll = nll(mc(test_images))
nlls = [sum(map(nll, groups)) / len(groups) for groups in map(all_logits.split, sizes)]
plot_series(sizes, {"MCBN": nlls}, ("estimators S", "NLL"), dashed={"plain network": plain_nll})

# %%
# On average, more estimators are better, but with diminishing returns: 8 give most of the
# improvement from 1 to 32. The dashed line is the plain network, without MCBN. With mini-batches as
# in training, the NLL of 32 estimators is within 5 % of it, above or below, so on this task MCBN
# does not give much better probabilities. What it adds is how far the estimators disagree. If
# nobody looks at that, serve the plain network.

print("S    ", *(f"{size:6}" for size in sizes), "  plain")
print("NLL  ", *(f"{value:6.4f}" for value in nlls), f" {plain_nll:6.4f}")
assert nlls[5] < nlls[0]
assert (nlls[0] - nlls[3]) / (nlls[0] - nlls[5]) > 0.7
assert abs(nlls[5] / plain_nll - 1) < 0.05

# %%
# Time for one image
# ------------------
#
# Times depend on the machine, so they are in the figure and not in this text. We take the median of
# 30 predictions, after a few to warm up. The budget is the time of three plain predictions.

from statistics import median
from time import perf_counter


@torch.inference_mode()
def milliseconds(predict, image=images[:1], repeats=30):
    times = []
    for _ in range(5 + repeats):
        start = perf_counter()
        predict(image)
        times.append(1000 * (perf_counter() - start))
    return median(times[5:])


# %%
# We time the plain network, and wrappers with each number of estimators: those that run one forward
# pass after another (``path="loop"``), and those that run the estimators together, which is the
# default.


def wrapper(num_estimators, path="auto"):
    mc = MCBatchNorm(routine.model, num_estimators, mc_batch_size=100, path=path)
    return mc.fit(datamodule.train_dataloader()).eval()


latency = {
    "one pass after another": [milliseconds(wrapper(size, "loop")) for size in sizes],
    "MCBN": [milliseconds(wrapper(size)) for size in sizes],
}
plain = milliseconds(routine.model.eval())
budget = 3 * plain

# %%
# Take the largest :math:`S` within the budget, shown above the figure, or the smallest that has the
# NLL you need.

within = [s for s, t in zip(sizes, latency["MCBN"], strict=True) if t <= budget]
ax = plot_series(
    sizes,
    latency,
    ("estimators S", "milliseconds for one image"),
    dashed={"plain network": plain, "budget": budget},
)
ax.set_title(f"within the budget: S = {max(within)}" if within else "over the budget with any S")
ax.figure.set_label(
    "Milliseconds for one image against the number of estimators. One pass after another takes "
    "time in proportion to it; the wrapper, which runs them as one, stays far below."
)

# %%
# For one image, most of the time is spent on launching operations, not on computing. The wrapper
# launches them once for all estimators, so 32 estimators take less than half as long as 32 passes.

assert latency["MCBN"][-1] / latency["one pass after another"][-1] < 0.5

# %%
# Predict on several GPUs or machines
# -----------------------------------
#
# Lightning starts one process per GPU and gives each its share of the images. You do not need to
# add anything: the metrics are computed over all processes, and if every process calls ``fit``, all
# of them get the statistics of the first. We show it with two processes on the CPU. They run a
# script, as on a cluster, that loads the wrapper saved above:

script = """
import json, sys, warnings
import torch
from torch import nn
from mcbn import ClassificationRoutine, MCBatchNorm, MNISTDataModule, Trainer, lenet, optim_lenet

# Images that are handed out twice, for equal shares, are counted once by the routine.
warnings.filterwarnings("ignore", message="Using `DistributedSampler`")

mc = MCBatchNorm(lenet(1, 10), num_estimators=32)
mc.load_state_dict(torch.load("mc.pt", weights_only=True))
routine = ClassificationRoutine(10, mc, nn.CrossEntropyLoss(), optim_lenet)
trainer = Trainer(accelerator="cpu", devices=int(sys.argv[1]), strategy="ddp")
datamodule = MNISTDataModule(source="sample", batch_size=100)
[results] = trainer.test(routine, datamodule=datamodule, verbose=False)
if trainer.is_global_zero:
    print(json.dumps(results))
"""

# %%
# We run it with one process and with two.

import json
import os
import subprocess
import sys


def test_with(devices):
    (folder / "test.py").write_text(script)
    run = subprocess.run(
        [sys.executable, "test.py", str(devices)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(run.stdout.splitlines()[-1])]


# %%
# The results side by side:

import rich

from mcbn.results import ResultTables

results = {"one process": test_with(1), "two processes": test_with(2)}
rich.print(ResultTables(results))

# %%
# The metrics are the same.

[one], [two] = results.values()
for name, value in one.items():
    assert abs(two[name] - value) < 1e-4, name

# %%
# On a machine with eight GPUs, use ``Trainer(devices=8, strategy="ddp")``; on four such machines,
# ``Trainer(devices=8, num_nodes=4, strategy="ddp")``; in a notebook, ``strategy="ddp_notebook"``.
# Nothing else changes.

temporary.cleanup()

# %%
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_batch_size_and_estimators.py` has more on the
# choice of :math:`S`, and :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_own_network.py` on
# what can go wrong with your own network.
