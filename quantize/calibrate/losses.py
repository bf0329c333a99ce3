"""What every width costs: each matrix of a layer rounded alone, and how far the stream behind the layer moves by it.

Gate and up are rounded together, since runtimes fuse them and they keep one width. The loss of an item is the energy of
the change over that of the stream, so that layers can be compared; what later layers make of it is not seen.
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

_GROUP = 64
# More would tell the widths apart no better: a change is measured against its own original.
CHUNKS = 4
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
        root = model.make(layer)
        module = root.layers[layer]
        inputs = [stream.inputs(layer, chunk) for chunk in range(len(tokens))]
        returned = [module(*args, **kwargs) for args, kwargs in inputs]
        for chunk, one in enumerate(returned):
            stream.keep(layer, chunk, one)
        true = [arrays_of(one)[0].astype(mx.float32) for one in returned]
        modules = dict(root.named_modules())

        def run(at: Any = module, given: Any = inputs) -> list[mx.array]:
            return [arrays_of(at(*args, **kwargs))[0].astype(mx.float32) for args, kwargs in given]

        for name, group in items.items():
            if group[0].layer == layer:
                found[name] = _options(group, modules, true, run)
        stream.forget(layer)
        mx.clear_cache()
    return found


def _options(
    group: Sequence[OutputTensor],
    modules: Mapping[str, Any],
    true: Sequence[mx.array],
    run: Callable[[], list[mx.array]],
) -> list[Option]:
    own = {output.path: modules[output.path].weight for output in group}
    options = []
    for bits in BITS:
        spec = fitting_spec(QuantSpec(bits, _GROUP), group[0].shape[-1])
        assert spec is not None
        for path, weight in own.items():
            codes, scales, biases = mx.quantize(weight, spec.group_size, spec.bits)
            modules[path].weight = mx.dequantize(codes, scales, biases, spec.group_size, spec.bits)
        moved = [mx.square(one - other).sum() / mx.square(other).sum() for one, other in zip(run(), true, strict=True)]
        loss = sum(float(one) for one in moved) / len(moved)
        options.append(Option(spec, sum(replace(output, spec=spec).nbytes for output in group), loss))
    for path, weight in own.items():
        modules[path].weight = weight
    return options
