"""The checks that the modules share. A message says what was given, what was wanted, what to do."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor, nn


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise TypeError unless ``value`` is an int, ValueError if it is below ``least``."""
    check_type(name, value, int, "an integer")
    if value < least:
        raise ValueError(f"{name}={value}; it must be at least {least}.")


def check_number(name: str, value: Any, wanted: str, fits: Callable[[Any], bool]) -> None:
    """Raise TypeError unless ``value`` is a number, ValueError unless it fits.

    Example:
        >>> check_number("share", 2, "a number from 0 to 1", lambda share: 0 <= share <= 1)
        Traceback (most recent call last):
        ValueError: Given share=2, wanted a number from 0 to 1.
    """
    check_type(name, value, Real, wanted)
    if not fits(value):
        raise ValueError(f"Given {name}={value}, wanted {wanted}.")


def check_type(name: str, value: Any, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise TypeError unless ``value`` is of this kind; True and False are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name}={short(value)} is a {type(value).__name__}; pass {wanted}.")


def check_module(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is a network."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"{name} is a {type(value).__name__}; pass a torch.nn.Module.")


def check_callable(name: str, value: Any, wanted: str) -> None:
    """Raise TypeError unless ``value`` can be called."""
    if not callable(value):
        raise TypeError(f"{name}={short(value)} is a {type(value).__name__}; pass {wanted}.")


def check_tensors(**values: Any) -> None:
    """Raise TypeError unless all are dense tensors, ValueError unless all are on one device."""
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{name} is a {type(value).__name__}, wanted a torch.Tensor; torch.as_tensor makes "
                "one of numbers."
            )
        if value.layout is not torch.strided:
            raise TypeError(f"{name} is {value.layout}, wanted a dense tensor; call .to_dense().")
    devices = {name: str(value.device) for name, value in values.items()}
    if len(set(devices.values())) > 1:
        raise ValueError(f"Given {devices}, wanted all on one device; move them with .to(device).")


def check_has_values(**values: Tensor) -> None:
    """Raise ValueError for tensors of the meta device, that have a shape and nothing else."""
    for name, value in values.items():
        if value.is_meta:
            raise ValueError(
                f"{name} is on the meta device and holds no values, wanted some; make it on a real "
                "device."
            )


def check_labels(target: Tensor, rows: int) -> None:
    """Raise ValueError unless these are integers, one for each row."""
    if target.shape != (rows,) or target.is_floating_point() or target.is_complex():
        raise ValueError(
            f"Given target of type {target.dtype} and shape {tuple(target.shape)}, wanted integer "
            f"labels of shape ({rows},), one for each row."
        )


def check_classes(lowest: float, highest: float, classes: int) -> None:
    """Raise ValueError unless labels from the one to the other all have a class."""
    if not 0 <= lowest <= highest < classes:
        raise ValueError(
            f"Given labels from {lowest:.0f} to {highest:.0f}, wanted 0 to {classes - 1} for "
            f"{classes} classes."
        )


def check_regression(target: Tensor, **predicted: Tensor) -> None:
    """Raise unless all are finite floating point numbers of the target's shape.

    ``predictions`` have the estimators' axis in front; a ``std`` is 0 or more.
    """
    given = {"target": target, **predicted}
    check_tensors(**given)
    check_has_values(**given)
    for name, values in given.items():
        of_estimators = name == "predictions"
        shape = values.shape[1:] if of_estimators else values.shape
        if not (shape == target.shape and values.is_floating_point() and values.numel()):
            wanted = "shape (num_estimators, *target.shape)" if of_estimators else "that shape"
            raise ValueError(
                f"Given {name} {values.dtype} of shape {tuple(values.shape)} for a target of shape "
                f"{tuple(target.shape)}, wanted floating point of {wanted}, no axis empty."
            )
        if not values.isfinite().all():
            raise ValueError(f"Given {name} with NaN or infinity, wanted finite numbers.")
        if name == "std" and values.amin() < 0:
            raise ValueError(f"Given a std of {values.amin():.4g}, wanted 0 or more.")
