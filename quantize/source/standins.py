"""What mlx-lm makes of the tensors of a checkpoint, found by running its own `sanitize` on tensors without data.

Each stand-in knows which elements of which source tensor it is. Slicing, splitting, reshaping and transposing give
another stand-in, stacking a list of them, and adding a number is remembered. `sanitize` sees a stand-in for `mlx.core`
as well. Whatever else it does to a tensor is an error: it cannot be followed, and is never guessed.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from quantize.source.views import View, view_of

# Never read: numpy computes offsets and strides from it, one byte standing for one element.
_BASE = np.zeros(1, np.uint8)
_BASE_ADDRESS = _BASE.__array_interface__["data"][0]


class Standin:
    """A view of one source tensor."""

    def __init__(self, source: str, dtype: mx.Dtype, layout: np.ndarray[Any, Any], plus: float = 0) -> None:
        self.source = source
        self.dtype = dtype
        self._layout = layout
        self._plus = plus

    @classmethod
    def of(cls, source: str, shape: Sequence[int], dtype: mx.Dtype) -> Standin:
        """All of a source tensor."""
        strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        return cls(source, dtype, np.lib.stride_tricks.as_strided(_BASE, shape, strides, writeable=False))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._layout.shape)

    @property
    def ndim(self) -> int:
        return self._layout.ndim

    @property
    def view_of_source(self) -> View:
        offset = self._layout.__array_interface__["data"][0] - _BASE_ADDRESS
        return view_of(offset, self.shape, self._layout.strides, self._plus)

    def __getitem__(self, index: Any) -> Standin:
        return self._with(self._layout[index])

    def __add__(self, number: float) -> Standin:
        if not isinstance(number, int | float):
            return NotImplemented
        return Standin(self.source, self.dtype, self._layout, self._plus + number)

    def view(self, dtype: mx.Dtype) -> Standin:
        """Only as what it is: other dtypes have other elements."""
        if dtype != self.dtype:
            raise TypeError(f"{self.source} is viewed as {dtype}")
        return self

    @property
    def T(self) -> Standin:
        return self.transpose()

    def split(self, into: int | Sequence[int], axis: int = 0) -> list[Standin]:
        return _Operations.split(self, into, axis)

    def reshape(self, *shape: Any) -> Standin:
        # Numbers, or one sequence of them.
        if len(shape) == 1 and not isinstance(shape[0], int):
            shape = tuple(shape[0])
        try:
            return self._with(np.reshape(self._layout, shape, copy=False))
        except ValueError as error:
            raise TypeError(f"{self.source} is reshaped from {self.shape} to {shape}") from error

    def flatten(self, start_axis: int = 0, end_axis: int = -1) -> Standin:
        start, end = start_axis % self.ndim, end_axis % self.ndim
        return self.reshape(*self.shape[:start], -1, *self.shape[end + 1 :])

    def transpose(self, *axes: int) -> Standin:
        return self._with(self._layout.transpose(*axes))

    def swapaxes(self, one: int, other: int) -> Standin:
        return self._with(self._layout.swapaxes(one, other))

    def moveaxis(self, source: int, destination: int) -> Standin:
        return self._with(np.moveaxis(self._layout, source, destination))

    def squeeze(self, axis: int | tuple[int, ...] | None = None) -> Standin:
        return self._with(self._layout.squeeze(axis))

    def _with(self, layout: np.ndarray[Any, Any]) -> Standin:
        return Standin(self.source, self.dtype, layout, self._plus)


class StackedStandins:
    """Equal stand-ins along a new first axis: the experts of a layer."""

    def __init__(self, parts: Sequence[Standin]) -> None:
        self.parts = parts
        self.dtype = parts[0].dtype
        self.shape = (len(parts), *parts[0].shape)
        self.ndim = len(self.shape)


class _Operations:
    """`mlx.core` for stand-ins: the functions that only move elements; of all else the real ones, which refuse them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(mx, name)

    @staticmethod
    def stack(arrays: Sequence[Standin], axis: int = 0) -> StackedStandins:
        if axis != 0 or not all(isinstance(array, Standin) for array in arrays):
            raise TypeError(f"tensors are stacked along axis {axis}")
        if other := next((array for array in arrays if array.shape != arrays[0].shape), None):
            raise TypeError(f"{other.source} has the shape {other.shape}, {arrays[0].source} {arrays[0].shape}")
        return StackedStandins(arrays)

    @staticmethod
    def split(array: Standin, into: int | Sequence[int], axis: int = 0) -> list[Standin]:
        size = array.shape[axis]
        if isinstance(into, int) and size % into:
            raise TypeError(f"{array.source} is split into {into} parts of {size}")
        ends = [size // into * number for number in range(1, into)] if isinstance(into, int) else list(into)
        before = (slice(None),) * (axis % array.ndim)
        return [array[*before, slice(a, b)] for a, b in zip([0, *ends], [*ends, size], strict=True)]

    @staticmethod
    def contiguous(array: Standin) -> Standin:
        return array

    @staticmethod
    def reshape(array: Standin, shape: Sequence[int]) -> Standin:
        return array.reshape(*shape)

    @staticmethod
    def flatten(array: Standin, start_axis: int = 0, end_axis: int = -1) -> Standin:
        return array.flatten(start_axis, end_axis)

    @staticmethod
    def transpose(array: Standin, axes: Sequence[int] = ()) -> Standin:
        return array.transpose(*axes)

    @staticmethod
    def squeeze(array: Standin, axis: int | tuple[int, ...] | None = None) -> Standin:
        return array.squeeze(axis)

    @staticmethod
    def swapaxes(array: Standin, one: int, other: int) -> Standin:
        return array.swapaxes(one, other)

    @staticmethod
    def moveaxis(array: Standin, source: int, destination: int) -> Standin:
        return array.moveaxis(source, destination)


def sanitized(model: Any, tensors: Mapping[str, Standin]) -> dict[str, Standin | StackedStandins]:
    """What `model.sanitize` makes of `tensors`; `model` is of no further use than for its tree of modules.

    Raises:
        KeyError: a tensor is missing.
        TypeError, AttributeError, ValueError, IndexError: it does something that cannot be followed.
    """
    for module in model.modules():
        if method := getattr(type(module), "sanitize", None):
            module.sanitize = types.MethodType(_followed(method), module)
    return model.sanitize(dict(tensors)) if hasattr(model, "sanitize") else dict(tensors)


def _followed(sanitize: Any) -> types.FunctionType:
    """The same code with another `mx`, and so that of another family's class which it calls by its name: nothing
    outside of this model changes."""
    names = {**sanitize.__globals__, "mx": _Operations()}
    for name in sanitize.__code__.co_names:
        other = names.get(name)
        if isinstance(other, type) and other.__module__ != sanitize.__module__ and hasattr(other, "sanitize"):
            names[name] = type(name, (other,), {"sanitize": _followed(other.sanitize)})
    return types.FunctionType(sanitize.__code__, names, "sanitize", sanitize.__defaults__, sanitize.__closure__)
