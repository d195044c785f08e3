"""What a metric refuses, said before it computes anything.

A metric given the wrong tensor does not crash by itself: it returns a number that means nothing. The decorator here
runs before the function (and before the shape annotations that are checked under pytest), so a caller always gets one
:class:`~opdgeom_utils.errors.MetricInputError`, with what was found, what was expected and what to do.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.bf16_bits import is_finite

P = ParamSpec("P")
R = TypeVar("R")


def checked(
    *,
    matrices: tuple[str, ...] = (),
    tensors: tuple[str, ...] = (),
    vectors: tuple[str, ...] = (),
    masks: tuple[str, ...] = (),
    same_shape: bool = True,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a metric so that its named arguments are checked first.

    ``matrices``, ``tensors``, ``vectors``: arguments that must be finite floating tensors with two, any, or one
    dimension.
    ``masks``: arguments that must be boolean tensors.
    ``same_shape``: whether all named arguments must have one shape.
    Returns a decorator that keeps the signature.

    >>> @checked(vectors=("x",))
    ... def total(x):
    ...     return float(x.sum())
    >>> total(torch.tensor([1.0, 2.0]))
    3.0
    """
    dimensions = dict.fromkeys(matrices, 2) | dict.fromkeys(tensors, None) | dict.fromkeys(vectors, 1)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            for name, ndim in dimensions.items():
                check_finite_tensor(name, given[name], ndim=ndim)
            for name in masks:
                check_mask(name, given[name])
            named = [name for name in given if name in dimensions or name in masks]
            if same_shape:
                check_same_shape({name: given[name] for name in named})
            return function(*args, **kwargs)

        return wrapper

    return decorate


def check_finite_tensor(name: str, value: Any, *, ndim: int | None = None) -> None:
    """Refuse anything but a finite, non-empty floating tensor of ``ndim`` dimensions (any number if None).

    Raises MetricInputError for another type, dtype or number of dimensions, no entries, or NaN or infinite entries.
    """
    if not isinstance(value, Tensor):
        raise MetricInputError(f"{name} is a {type(value).__name__}, expected a torch.Tensor; convert it first.")
    if not value.is_floating_point():
        raise MetricInputError(
            f"{name} has dtype {value.dtype}, expected a floating dtype; cast or dequantise it first."
        )
    if ndim is not None and value.ndim != ndim:
        kind = "a matrix (out, in)" if ndim == 2 else "a vector"
        raise MetricInputError(f"{name} has shape {tuple(value.shape)}, expected {kind}; reshape or select first.")
    if value.numel() == 0:
        raise MetricInputError(f"{name} has shape {tuple(value.shape)}, so no entries; expected at least one.")
    if not is_finite(value):
        n_bad = int((~torch.isfinite(value)).sum())
        raise MetricInputError(f"{name} has {n_bad} NaN or infinite entries, expected none; find where they came from.")


def check_mask(name: str, value: Any) -> None:
    """Refuse anything but a boolean tensor.

    Raises MetricInputError for another type or dtype.
    """
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise MetricInputError(f"{name} is {found}, expected a boolean tensor; compare or threshold it first.")


def check_same_shape(named: dict[str, Tensor]) -> None:
    """Refuse tensors of different shapes.

    Raises MetricInputError when two of them differ.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise MetricInputError(f"found {found}, expected one shape; compare matrices of the same name and model.")


def check_count(name: str, value: Any, *, at_least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``at_least``.

    Raises MetricInputError for another type or a smaller number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise MetricInputError(f"{name} is {value!r}, expected a whole number of at least {at_least}.")


def check_fraction(name: str, value: Any, *, at_most: float = 1.0) -> None:
    """Refuse anything but a number from 0 to ``at_most``.

    Raises MetricInputError for another type, NaN, or a number outside the range.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= at_most:
        raise MetricInputError(f"{name} is {value!r}, expected a number from 0 to {at_most:g}.")


def check_size(name: str, value: Any) -> None:
    """Refuse anything but a finite number of at least 0.

    Raises MetricInputError for another type, NaN, infinity or a negative number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise MetricInputError(f"{name} is {value!r}, expected a finite number of at least 0.")
