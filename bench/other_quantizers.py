"""mlx-lm's own quantizers on a model and text of ours: what `bench.calibration` sets beside the recipe.

Each is called as its own command calls it. The text is the calibration's, the widths are the policy's, and a tool that
cannot be told them says so. All else is the tool's default, but for dwq's learning rate: its 1e-6 is for millions of
tokens and changes nothing here, so it gets the one of several that its own held-back loss is least with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx import optimizers
from mlx.utils import tree_flatten, tree_map
from mlx_lm.quant.awq import AWQ_MODEL_CONFIGS, awq_quantize, update_config
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from mlx_lm.quant.gptq import gptq_quantize
from mlx_lm.tuner.losses import kl_div_loss
from mlx_lm.utils import load, quantize_model, save

from bench.quantized_products import by_plain_products
from quantize.errors import QuantizeError

_GROUP, _LOW, _HIGH = 64, 2, 8
_SEED = 123
_RATES = (1e-6, 1e-5, 1e-4)


@dataclass(frozen=True, slots=True)
class Task:
    """`rounded`: the model that the policy's rounding made of `source`. `bits`: of every matrix, where the policy has
    one width. `tensor_bytes`: of the finished model. `used`, `held_back`: chunks of tokens, of one length each."""

    source: Path
    rounded: Path
    bits: int | None
    tensor_bytes: int
    used: list[list[int]]
    held_back: list[list[int]]
    output: Path


def dwq(task: Task) -> None:
    """Scales and biases of the policy's own rounding, trained to the source's logits: the same widths and bytes."""
    source = _load(task.source)[0]
    train, valid = ([(chunk, 0) for chunk in part] for part in (task.used, task.held_back))
    longest = max(len(chunk) for chunk, _ in [*train, *valid])

    def targets(batch: mx.array, number: int, split: str) -> mx.array:
        logits: mx.array = source(batch)
        return logits

    best: tuple[float, Any] | None = None
    for rate in _RATES:
        student = _load(task.rounded)[0]
        by_plain_products(student)
        optimizer = optimizers.Adam(learning_rate=rate, bias_correction=True)
        length = {"batch_size": 1, "max_seq_length": longest}
        dwq_quantize(student, targets, optimizer, train, valid, seed=_SEED, **length, **_dtype())
        loss = _divergence(source, student, task.held_back)
        print(f"dwq, learning rate {rate}: {loss:.4f}", file=sys.stderr)
        if best is None or loss < best[0]:
            best = loss, student
    assert best is not None
    _, tokenizer, config = _load(task.rounded)
    _save(task, best[1], tokenizer, config)


def gptq(task: Task) -> None:
    """One width for every matrix, and for what its GPTQ leaves out."""
    if task.bits not in (2, 4, 8):
        raise QuantizeError("mlx-lm's gptq knows one width for all matrices, of 2, 4 or 8 bits.")
    model, tokenizer, config = _load(task.source)
    model, config["quantization"] = gptq_quantize(model, mx.array(task.used), task.bits, _GROUP, task.bits, _GROUP)
    _save(task, model, tokenizer, config)


def awq(task: Task) -> None:
    """One width for every matrix; embeddings too."""
    model, tokenizer, config = _load(task.source)
    if config["model_type"] not in AWQ_MODEL_CONFIGS:
        raise QuantizeError(f"mlx-lm's awq does not know the model type {config['model_type']}.")
    if task.bits is None:
        raise QuantizeError("mlx-lm's awq knows one width for all matrices.")
    known = AWQ_MODEL_CONFIGS[config["model_type"]]
    embedding = {"embed_bits": task.bits, "embed_group_size": _GROUP}
    awq_quantize(model, mx.array(task.used), known, group_size=_GROUP, bits=task.bits, **embedding)
    _save(task, model, tokenizer, update_config(model, config))


def dynamic(task: Task) -> None:
    """2 or 8 bits by the sensitivity of each matrix, at the policy's bytes of the whole model."""
    if task.bits == _LOW:
        raise QuantizeError("At the bytes of its least width mlx-lm's dynamic_quant has no choice.")
    model, tokenizer, config = _load(task.source)
    widths = (_LOW, _GROUP, _HIGH, _GROUP)
    sensitivities = dict(estimate_sensitivities(model, mx.array(task.used), *widths))
    parameters = sum(value.size for _, value in _flat(model))
    wanted = 8 * task.tensor_bytes / parameters
    threshold = estimate_threshold(model, sensitivities, wanted, *widths)

    def chosen(path: str, module: Any) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized"):
            return False
        return {"bits": _HIGH, "group_size": _GROUP} if sensitivities[path] > threshold else True

    model, config = quantize_model(model, config, group_size=_GROUP, bits=_LOW, quant_predicate=chosen)
    _save(task, model, tokenizer, config)


TOOLS: dict[str, Callable[[Task], None]] = {
    "mlx-lm dwq": dwq,
    "mlx-lm gptq": gptq,
    "mlx-lm awq": awq,
    "mlx-lm dynamic": dynamic,
}


def _load(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """In float32: MLX's CPU backend multiplies by no stack of bfloat16 experts, and is slow in bfloat16."""
    model, tokenizer, config = load(str(folder), lazy=True, return_config=True)
    if mx.default_device() == mx.Device(mx.cpu):
        model.update(tree_map(partial(_as, mx.float32), model.parameters()))
    return model, tokenizer, config


def _dtype() -> dict[str, mx.Dtype]:
    """That dwq computes in, where its own would be slow."""
    return {"dtype": mx.float32} if mx.default_device() == mx.Device(mx.cpu) else {}


def _save(task: Task, model: Any, tokenizer: Any, config: dict[str, Any]) -> None:
    """In the dtype that the policy's own models have."""
    model.update(tree_map(partial(_as, mx.bfloat16), model.parameters()))
    save(task.output, str(task.source), model, tokenizer, config)


def _as(dtype: mx.Dtype, value: mx.array) -> mx.array:
    return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) else value


def _divergence(source: Any, student: Any, chunks: list[list[int]]) -> float:
    losses = []
    for chunk in chunks:
        tokens = mx.array([chunk])
        losses.append(float(kl_div_loss(student(tokens), source(tokens)).mean()))
    return sum(losses) / len(losses)


def _flat(model: Any) -> list[tuple[str, mx.array]]:
    return [(name, value) for name, value in tree_flatten(model.parameters()) if isinstance(value, mx.array)]
