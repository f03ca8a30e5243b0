"""
Deployment: from notebook to service
====================================

A network has been trained and wrapped, and now others want to use it: on a machine without the
training data, without PyTorch, within a few milliseconds; or on several GPUs, because there is much
to predict. This page shows how, with a small LeNet trained on the 4,000 digits that come with the
package and tested on its 1,000, with seed 0.

The network to serve
--------------------

A network after 200 steps, wrapped with 32 estimators from mini-batches of 100 digits, as in its
training.
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
# Saving
# ------
#
# A wrapper is saved like any module, by its ``state_dict``. The statistics of the estimators are
# part of it, so a wrapper that loads it is fitted, and needs no training data.

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
# Loading
# -------
#
# A wrapper of the same network with as many estimators can load it. ``weights_only=True`` is meant
# to read numbers and run no code. That is enough for files of your own; but it had `a hole
# <https://github.com/pytorch/pytorch/security/advisories/GHSA-53q9-r3pm-6pq6>`_ once, so do not
# read files of strangers in this way. Ask for `safetensors
# <https://pypi.org/project/safetensors/>`_, a format that holds tensors and nothing else:
# ``save_file(mc.state_dict(), path)`` and ``load_state_dict(load_file(path))``. The predictions are
# the same.

loaded = MCBatchNorm(lenet(1, 10), num_estimators=32).eval()
loaded.load_state_dict(torch.load(folder / "mc.pt", weights_only=True))

images, labels = next(iter(datamodule.test_dataloader()))
with torch.no_grad():
    torch.testing.assert_close(loaded(images), mc(images))
    with loaded.deterministic():
        torch.testing.assert_close(loaded(images), routine.model.eval()(images))

# %%
# The plain prediction is in there, too: ``deterministic()`` turns the wrapper into the network that
# it was made from.
#
# ONNX: without PyTorch
# ---------------------
#
# An ONNX file holds all estimators in one graph, for any number of images. This cell needs
# ``pip install onnx onnxscript onnxruntime``.

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
# How many estimators does a prediction need?
# -------------------------------------------
#
# A service answers for one image at a time, and has a budget of time for it. The more estimators,
# the longer it takes. Do they pay? Estimators are independent, so any S of our 32 are a wrapper
# with S. Here is the NLL of the 1,000 test images against S, as the mean over all groups of S into
# which the 32 can be cut.


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
# More are better, on average, but less and less so: most of the way from 1 to 32 is done
# with 8. The dashed line is the network without MCBN. With mini-batches as in the training, 32
# estimators come within 5 % of it, on the one side or the other: on this task, MCBN does not serve
# better probabilities. What it serves besides is how far the estimators disagree. If nobody looks
# at that, serve the plain network.

print("S    ", *(f"{size:6}" for size in sizes), "  plain")
print("NLL  ", *(f"{value:6.4f}" for value in nlls), f" {plain_nll:6.4f}")
assert nlls[5] < nlls[0]
assert (nlls[0] - nlls[3]) / (nlls[0] - nlls[5]) > 0.7
assert abs(nlls[5] / plain_nll - 1) < 0.05

# %%
# Time for one image
# ------------------
#
# The time depends on the machine, so it is in the figure and not in this text. We take the median
# of 30 predictions, after a few that do not count, and ask for the budget of three plain
# predictions.

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
# The largest S within the budget is the one to take, or the smallest that has the NLL you need. It
# stands above the figure.

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
# For one image most of the time goes into starting operations, not into computing. The wrapper
# starts them once for all estimators, so that 32 take less than half as long as 32 passes.

assert latency["MCBN"][-1] / latency["one pass after another"][-1] < 0.5

# %%
# Several GPUs or machines
# ------------------------
#
# Lightning starts a process for each GPU, and hands each its share of the images. The package has
# nothing to add: the metrics are right over processes, and ``fit``, where every process calls it,
# gives all of them the statistics of the first. We show it with two processes on the CPU. What they
# run is a script, as it would be on a cluster, that loads what we have saved:

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
# On a machine with eight GPUs it is ``Trainer(devices=8, strategy="ddp")``, on four such machines
# ``Trainer(devices=8, num_nodes=4, strategy="ddp")``; in a notebook, ``strategy="ddp_notebook"``.
# There, too, nothing else changes.

temporary.cleanup()

# %%
# What to read next
# -----------------
#
# :ref:`sphx_glr_auto_tutorials_Understanding_tutorial_batch_size_and_estimators.py` has more on the
# choice of S, and :ref:`sphx_glr_auto_tutorials_Applying_It_tutorial_own_network.py` on what can go
# wrong with a network of your own.
