"""What every width costs: each matrix of a layer rounded alone, and how far the stream behind the layer moves by it.

Gate and up are rounded together, since runtimes fuse them and they keep one width. The loss of an item is the energy of
the change over that of the stream, token by token, so that layers can be compared: what reads the stream normalizes
each token's. In the sum over all tokens a few, whose stream is huge, would be nearly all of a layer's energy, and no
width would seem to cost anything there. What later layers make of a change is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx

from quantize.calibrate.allocation import Allocation, BudgetTooSmall, Option, allocate
from quantize.errors import PolicyError
from quantize.folder.quant_spec import BITS, QuantSpec, fitting_spec
from quantize.forward.capture import arrays_of
from quantize.forward.models import LazyModel
from quantize.forward.store import InMemory
from quantize.forward.stream import Stream
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import Plan
from quantize.progress import Progress

# More would tell the widths apart no better: a change is measured against its own original.
CHUNKS = 4
# That are rounded at once.
_BLOCK_NUMBERS = 1_000_000
_TIED = ("mlp_gate_up", "expert_gate_up")


def widths_within(
    budget: int, plan: Plan, model: LazyModel, tokens: Sequence[mx.array], progress: Progress
) -> dict[str, QuantSpec]:
    """Tensor -> spec, so that all tensors of `plan` take at most `budget` bytes. Raises PolicyError: too few."""
    items = _items(plan)
    fixed = plan.tensor_bytes - sum(output.nbytes for group in items.values() for output in group)
    losses = _losses(plan, items, model, tokens, progress)
    try:
        found: Allocation = allocate(losses, budget - fixed)
    except BudgetTooSmall as error:
        least = error.least + fixed
        each = f"{least * 8 / plan.parameters:.3f} bits for each weight"
        raise PolicyError(f"The smallest model that can be built takes {least:,} bytes, {each}.") from None
    return {
        output.name: option.spec
        for name, option in found.choice.items()
        for output in items[name]
        if option.spec is not None
    }


def _items(plan: Plan) -> dict[str, list[OutputTensor]]:
    """What gets one width: a matrix, or gate and up of one layer. The rest of a model stays as the policy has it."""
    items: dict[str, list[OutputTensor]] = {}
    for output in plan.tensors:
        if output.layer is not None and output.spec is not None:
            parent = output.path.rpartition(".")[0]
            name = f"{parent} {output.role}" if output.role in _TIED else output.path
            items.setdefault(name, []).append(output)
    return items


def _losses(
    plan: Plan,
    items: Mapping[str, Sequence[OutputTensor]],
    model: LazyModel,
    tokens: Sequence[mx.array],
    progress: Progress,
) -> dict[str, list[Option]]:
    stream = Stream(model, tokens, InMemory())
    found: dict[str, list[Option]] = {}
    for layer in range(stream.layers):
        work = plan.work_bytes
        done = work * layer // stream.layers
        progress("calibrating", done, work, f"widths of layer {layer + 1} of {stream.layers}")
        own = {name: group for name, group in items.items() if group[0].layer == layer}
        found |= _losses_of(layer, own, stream)
        stream.forget(layer)
        mx.clear_cache()
    return found


def _losses_of(layer: int, items: Mapping[str, Sequence[OutputTensor]], stream: Stream) -> dict[str, list[Option]]:
    """A call of its own: of the layer, nothing is left when it returns."""
    root = stream.model.make(layer)
    module = root.layers[layer]
    inputs = [stream.inputs(layer, chunk) for chunk in range(len(stream.chunks))]
    for chunk, (args, kwargs) in enumerate(inputs):
        stream.keep(layer, chunk, module(*args, **kwargs))

    def run() -> list[mx.array]:
        return [arrays_of(module(*args, **kwargs))[0].astype(mx.float32) for args, kwargs in inputs]

    true = run()
    mx.eval(true)
    modules = dict(root.named_modules())
    return {name: _options(group, modules, true, run) for name, group in items.items()}


def _options(
    group: Sequence[OutputTensor],
    modules: Mapping[str, Any],
    true: Sequence[mx.array],
    run: Callable[[], list[mx.array]],
) -> list[Option]:
    own = {output.path: modules[output.path].weight for output in group}
    planned = group[0].spec
    assert planned is not None
    options = []
    for bits in BITS:
        spec = fitting_spec(QuantSpec(bits, planned.group_size), group[0].shape[-1])
        assert spec is not None
        for path, weight in own.items():
            # Before the next is made, the last one goes.
            modules[path].weight = weight
            modules[path].weight = _rounded(weight, spec)
        changes = [moved(one, other) for one, other in zip(run(), true, strict=True)]
        loss = sum(map(float, changes)) / len(changes)
        options.append(Option(spec, sum(replace(output, spec=spec).nbytes for output in group), loss))
    for path, weight in own.items():
        modules[path].weight = weight
    return options


def moved(stream: mx.array, true: mx.array) -> mx.array:
    """(..., tokens, hidden size) each, as float32: by what part of its energy a token's stream changed, on average.

    A token without any energy counts what it has become, so that no number is lost.
    """
    energy = mx.square(true).sum(axis=-1)
    return (mx.square(stream - true).sum(axis=-1) / mx.where(energy == 0, 1, energy)).mean()


def _rounded(weight: mx.array, spec: QuantSpec) -> mx.array:
    """In blocks of rows: MLX's CPU backend quantizes in steps, each of which makes an array of as many numbers."""
    rows = weight.reshape(-1, weight.shape[-1])
    rounded = mx.zeros_like(rows)
    size = max(1, _BLOCK_NUMBERS // rows.shape[1])
    for at in range(0, len(rows), size):
        codes, scales, biases = mx.quantize(rows[at : at + size], spec.group_size, spec.bits)
        rounded[at : at + size] = mx.dequantize(codes, scales, biases, spec.group_size, spec.bits)
        mx.eval(rounded)
    return rounded.reshape(weight.shape)
