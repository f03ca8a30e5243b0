"""Optimization recipes: what the tutorials' trainings need to know about optimizers."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import PolynomialLR

from mcbn.checks import check_count, check_module


def optim_lenet(model: nn.Module, num_steps: int = 938) -> dict[str, Any]:
    """SGD with Nesterov momentum whose learning rate falls from 0.05 to 0, a bit at every step.

    It counts steps and not epochs, so a training on few digits and one on many are equally long.

    Args:
        model: The network whose parameters are trained.
        num_steps: Steps until the learning rate is 0, where it stays. The default is two epochs of
            60,000 images in batches of 128.

    Raises:
        TypeError: ``model`` is no module, or the number no integer.
        ValueError: There is no parameter, or the number is below 1.

    Example:
        >>> recipe = optim_lenet(nn.Linear(2, 1))
        >>> recipe["optimizer"].param_groups[0]["lr"], recipe["lr_scheduler"]["interval"]
        (0.05, 'step')
    """
    check_module("model", model)
    check_count("num_steps", num_steps)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = PolynomialLR(optimizer, total_iters=num_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
