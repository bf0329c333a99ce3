"""What each row of an expert counts for in what its part of the layer returns.

A part adds up what its experts return, each times a number of the router's. Where that number comes from differs from
family to family, and mlx-lm sorts the rows for large products; so it is not looked for but is read off, as a derivative
of what the part returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from quantize.forward.hooks import Hook, hooked


@dataclass(frozen=True, slots=True)
class PartCall:
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def noting_call(path: str, calls: dict[str, PartCall]) -> tuple[str, Hook]:
    """A hook that keeps what the module at `path` is called with."""

    def note(call: Any, *args: Any, **kwargs: Any) -> Any:
        calls[path] = PartCall(args, kwargs)
        return call(*args, **kwargs)

    return path, note


def row_worths(
    part: Any, call: PartCall, experts: Mapping[str, Any], last: str, rows: int, tokens: mx.array
) -> mx.array:
    """(rows, 1) float32, rows sorted by expert: the number that the output of each is multiplied by before `part` adds
    it up, times that of its token.

    experts: all matrices of experts in `part`, by path; last: that of them whose outputs are added up; tokens: (tokens,
    1) float32.
    """

    def added_up(shares: mx.array) -> mx.array:
        """Of rows whose outputs are `shares`, (rows, 1), in the first column and nothing else."""

        def share(_: Any, x: mx.array, indices: mx.array, **kwargs: Any) -> mx.array:
            place = mx.argsort(mx.argsort(indices.reshape(-1)))
            own = shares[place].reshape(*indices.shape, 1, 1)
            return mx.pad(own, [(0, 0)] * (own.ndim - 1) + [(0, experts[last].weight.shape[1] - 1)])

        with hooked((module, share if path == last else _nothing(module)) for path, module in experts.items()):
            returned = part(*call.args, **call.kwargs)
        first: mx.array = returned[..., 0].astype(mx.float32).reshape(-1, 1)
        return (first * tokens).sum()

    worths: mx.array = mx.grad(added_up)(mx.zeros((rows, 1)))
    return worths


def _nothing(module: Any) -> Hook:
    return lambda _, x, indices, **kwargs: mx.zeros((*indices.shape, 1, module.weight.shape[1]), x.dtype)
