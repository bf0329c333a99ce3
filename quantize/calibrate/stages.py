"""The order of solving within a layer, read off one run of it: matrices with one input, and who writes to the stream.

A stage is one input and the matrices that are given it (q, k and v; gate and up). Stages are solved in the order of
their calls, each on what the stages before it, quantized, really pass on.

A matrix writes to the residual stream where what follows is the stream before plus what it returned; stacked experts,
where it is that plus what the child of the layer that they are in makes of them. Between may stand norms (Gemma), whose
gains tell what an error of each column is worth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from quantize.calibrate.through_norms import token_rms
from quantize.errors import SourceError
from quantize.forward.capture import arrays_of
from quantize.forward.hooks import Hook, hooked
from quantize.forward.routing import by_expert

# The cosine: bfloat16 adds a little to a large stream with a large error.
_ALIKE = 0.9
_SMALLEST_GAIN = 1e-3
_MOST_CALLS = 8


@dataclass(frozen=True, slots=True)
class Writer:
    """`before`: the norm whose input is the stream before; `after`: that whose input is the stream behind, None where
    the layer returns it. `norms`: those between the matrix and the stream, in order, each with the gain of its columns.
    """

    before: str
    after: str | None
    norms: Sequence[tuple[str, mx.array]]

    @property
    def gains(self) -> mx.array | None:
        """(columns,): those of all norms, None where there is none."""
        return reduce(mx.multiply, (gain for _, gain in self.norms)) if self.norms else None


@dataclass(frozen=True, slots=True)
class Stage:
    """`paths` below the layer, the first that is called first. `experts`: of stacked experts. `ends`: the child of the
    layer that returns what the only matrix of this stage returns."""

    paths: tuple[str, ...]
    experts: bool
    writer: Writer | None = None
    ends: str | None = None


# By identity: a module may be called more than once, and arrays compare by element.
@dataclass(frozen=True, slots=True, eq=False)
class _Event:
    path: str
    given: mx.array
    returned: mx.array
    experts: mx.array | None
    norm: bool


def find_stages(layer: Any, modules: Mapping[str, Any], args: Any, kwargs: Any) -> list[Stage]:
    """`modules`: the matrices to be solved, by path below `layer`.

    In no stage are those that are not called; nor, of latent attention, those whose transpose is (keys): what that is
    given tells nothing of the columns; nor heads that are not given the same.

    Raises SourceError for a layer that is computed in a loop over the tokens (Mamba).
    """
    events: list[_Event] = []
    within = dict(layer.named_modules())
    norms = {path: module for path, module in within.items() if _is_norm(module)}
    parents = {child_of(path) for path in modules} & within.keys() - modules.keys()
    parts: dict[str, list[Any]] = {path: [] for path in parents}
    watches = [(module, _watch(path, module, events)) for path, module in {**modules, **norms}.items()]
    with hooked([*watches, *((within[path], _keep(kept)) for path, kept in parts.items())]):
        returned = arrays_of(layer(*args, **kwargs))[0]
    mx.eval(returned, [[event.given, event.returned] for event in events], parts)
    entering = arrays_of([args, kwargs])[0]
    called = [event for event in events if not event.norm]
    often = Counter(event.path for event in called).most_common(1)
    if often and often[0][1] > _MOST_CALLS:
        raise SourceError(f"The model calls {often[0][0]} token by token, which a calibration cannot follow.")
    groups: list[list[_Event]] = []
    for event in called:
        group = next((g for g in groups if _same_input(g[0], event)), None)
        if group is None:
            groups.append([event])
        elif event.path not in {other.path for other in group}:
            group.append(event)
    return [
        Stage(
            tuple(event.path for event in group),
            group[0].experts is not None,
            _writer(group[0], _added_up(group[0], parts), events, entering, returned) if len(group) == 1 else None,
            _ended(group[0], parts) if len(group) == 1 else None,
        )
        for group in groups
    ]


def child_of(path: str) -> str:
    """The child of the layer that a module below it is in, or is."""
    return path.partition(".")[0]


def parts_of_experts(stages: Sequence[Stage]) -> list[str]:
    """The children of the layer whose experts write to the stream."""
    return sorted({child_of(stage.paths[0]) for stage in stages if stage.experts and stage.writer is not None})


def _is_norm(module: Any) -> bool:
    weight = module.get("weight") if isinstance(module, nn.Module) else None
    return isinstance(weight, mx.array) and weight.ndim == 1 and not module.children()


def _watch(path: str, module: Any, events: list[_Event]) -> Hook:
    axes = module.weight.ndim

    def watch(call: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        returned = call(x, *args, **kwargs)
        if axes == 3 and args and isinstance(args[0], mx.array):
            rows, experts = by_expert(x, args[0])
            events.append(_Event(path, rows, returned, experts, norm=False))
        elif axes == 1 and isinstance(returned, mx.array):
            events.append(_Event(path, x, returned, None, norm=True))
        elif axes == 2 or (axes == 3 and x.shape[-3] == 1 and kwargs.get("transpose", True)):
            events.append(_Event(path, x, returned, None, norm=False))
        return returned

    return watch


def _keep(kept: list[Any]) -> Hook:
    def keep(call: Any, *args: Any, **kwargs: Any) -> Any:
        kept.append(call(*args, **kwargs))
        return kept[-1]

    return keep


def _ended(event: _Event, parts: Mapping[str, list[Any]]) -> str | None:
    child = child_of(event.path)
    match parts.get(child):
        case [mx.array() as returned] if event.experts is None and returned.shape == event.returned.shape:
            return child if bool(mx.array_equal(returned, event.returned).item()) else None
    return None


def _added_up(event: _Event, parts: Mapping[str, list[Any]]) -> mx.array | None:
    """What may reach the stream of a matrix; of experts, what their part of the layer makes of all of them."""
    if event.experts is None:
        return event.returned
    match parts.get(child_of(event.path)):
        case [mx.array() as returned]:
            return returned
    return None


def _same_input(first: _Event, other: _Event) -> bool:
    if first.given.shape != other.given.shape or (first.experts is None) != (other.experts is None):
        return False
    return bool(mx.array_equal(first.given, other.given).item())


def _writer(
    event: _Event, returned: mx.array | None, events: Sequence[_Event], entering: mx.array, leaving: mx.array
) -> Writer | None:
    at = events.index(event)
    if returned is None or returned.shape != entering.shape:
        return None
    wide = [(n, e) for n, e in enumerate(events) if e.norm and e.given.shape == entering.shape]
    before = next((e for n, e in reversed(wide) if n < at), None)
    if before is None:
        return None
    later = [e for n, e in wide if n > at]
    streams = [*((e.path, e.given) for e in later), (None, leaving)]
    # What may be added to the stream: what is returned itself or, where a norm is given it, what that or one more made.
    added: list[tuple[int, list[_Event], mx.array]] = [(0, [], returned)]
    if later and bool(mx.array_equal(later[0].given, returned).item()):
        added = [(n + 1, [later[0], one] if n else [one], one.returned) for n, one in enumerate(later)]
    found = [
        (_sum_likeness(before.given, value, stream), after, norms)
        for behind, norms, value in added
        for after, stream in streams[behind:]
    ]
    likeness, after, norms = max(found, key=lambda one: one[0])
    return Writer(before.path, after, [(norm.path, _gain(norm)) for norm in norms]) if likeness > _ALIKE else None


def _sum_likeness(before: mx.array, added: mx.array, after: mx.array) -> float:
    """Near 1 where `after` is the sum of both, times a number, since layers may multiply their output by one: what it
    has beside each of them is like the other."""
    before, added, after = (value.astype(mx.float32).reshape(-1) for value in (before, added, after))
    whole = before + added
    scale = (whole * after).sum() / mx.maximum((whole * whole).sum(), 1e-20)
    after = after / mx.where(scale == 0, 1.0, scale)
    return min(_cosine(after - before, added), _cosine(after - added, before))


def _cosine(first: mx.array, second: mx.array) -> float:
    return float((first * second).sum() / mx.maximum(mx.linalg.norm(first) * mx.linalg.norm(second), 1e-20))


def _gain(norm: _Event) -> mx.array:
    """(columns,), whatever the family keeps it as: fitted to what the norm did."""
    unit = (norm.given.astype(mx.float32) / token_rms(norm.given)).reshape(-1, norm.given.shape[-1])
    returned = norm.returned.astype(mx.float32).reshape(unit.shape)
    gain = (returned * unit).sum(0) / mx.maximum((unit * unit).sum(0), 1e-12)
    return mx.where(mx.abs(gain) < _SMALLEST_GAIN, _SMALLEST_GAIN, gain)
