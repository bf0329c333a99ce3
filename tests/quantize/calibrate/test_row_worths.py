"""What each row of an expert counts for, against what the layer does with a row that returns something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from quantize.calibrate.given import given_to_experts, note_returned, note_worths, noting, rows_of
from quantize.calibrate.row_worths import PartCall, noting_call
from quantize.calibrate.stages import Stage, find_stages, parts_of_experts
from quantize.calibrate.through_norms import token_rms
from quantize.forward.hooks import hooked, joined
from quantize.forward.models import FolderModel, InFloat32
from tests.support.checkpoints import Gemma4Sizes, gemma4, qwen3_moe, write
from tests.support.matrices import matrices

LAYER = 1
GEMMA4 = Gemma4Sizes(hidden=64, layers=2, full_every=2, experts=4, mlp_width=64)


# mlx-lm sorts the rows from 64 on.
@pytest.mark.parametrize("tokens", [24, 40])
@pytest.mark.parametrize("family", ["qwen3_moe", "gemma4"])
def test_a_row_counts_for_what_the_layer_makes_of_it(family: str, tokens: int, tmp_path: Path) -> None:
    layer = _layer(family, tmp_path)
    stream = mx.random.normal((1, tokens, layer.input_layernorm.weight.size), key=mx.random.key(0))
    stages = find_stages(layer, matrices(layer), (stream, "causal"), {})
    number, stage = next((n, one) for n, one in enumerate(stages) if one.experts and len(one.paths) == 1)
    assert stage.writer is not None
    notes, calls, returned = _noted(layer, stages, stream)
    (part,) = parts_of_experts(stages)
    inputs = notes[rows_of(number)]
    counted = given_to_experts(number, stage, notes, inputs, inputs, range(len(inputs))).inputs
    worths = np.array((counted * inputs).sum(-1) / (inputs * inputs).sum(-1))
    # What divides each token behind the experts, by hand.
    divided = token_rms(returned)[0] ** 0.5
    if family == "gemma4":
        assert [path for path, _ in stage.writer.norms] == [
            "post_feedforward_layernorm_2",
            "post_feedforward_layernorm",
        ]
        divided = divided * _rms_before(layer, "post_feedforward_layernorm_2", stream)
        divided = divided * _rms_before(layer, "post_feedforward_layernorm", stream)
    for row in (0, len(worths) // 2, len(worths) - 1):
        change = _part_changed_by(layer, part, stage, calls[part], row)
        token = int(np.abs(change).max(-1).argmax())
        assert worths[row] * float(divided[token, 0]) == pytest.approx(float(change[token].mean()), rel=1e-3)
        # And of no other token.
        assert np.abs(np.delete(change, token, 0)).max() < 1e-5


def test_rows_of_one_token_count_by_their_routers_weights(tmp_path: Path) -> None:
    layer = _layer("gemma4", tmp_path)
    stream = mx.random.normal((1, 1, layer.input_layernorm.weight.size), key=mx.random.key(3))
    stages = find_stages(layer, matrices(layer), (stream, "causal"), {})
    number, stage = next((n, one) for n, one in enumerate(stages) if one.experts and len(one.paths) == 1)
    notes, calls, _ = _noted(layer, stages, stream)
    _, chosen, weights = calls["experts"].args
    inputs = notes[rows_of(number)]
    counted = given_to_experts(number, stage, notes, inputs, inputs, range(len(inputs))).inputs
    shares = np.array((counted * inputs).sum(-1) / (inputs * inputs).sum(-1))
    of_router = np.array(weights).reshape(-1)[np.array(chosen).reshape(-1).argsort()]
    assert np.ptp(of_router) > 0.01
    np.testing.assert_allclose(shares / shares.sum(), of_router / of_router.sum(), rtol=1e-4)


def _layer(family: str, folder: Path) -> Any:
    made = gemma4(GEMMA4) if family == "gemma4" else qwen3_moe(layers=2)
    return InFloat32(FolderModel(write(folder, *made))).make(LAYER).layers[LAYER]


def _noted(
    layer: Any, stages: list[Stage], stream: mx.array
) -> tuple[dict[str, mx.array], dict[str, PartCall], mx.array]:
    """As a calibration notes a run of the layer, its calls, and the stream that it returns."""
    modules, notes, calls = dict(layer.named_modules()), dict[str, mx.array](), dict[str, PartCall]()
    hooks = [noting_call(path, calls) for path in parts_of_experts(stages)]
    hooks += [hook for number, stage in enumerate(stages) for hook in noting(number, stage, notes)]
    with hooked(joined(modules, hooks)):
        returned = layer(stream, "causal")
    returned = returned[0] if isinstance(returned, tuple) else returned
    note_returned(stages, returned, notes)
    note_worths(stages, modules, calls, notes)
    return notes, calls, returned


def _rms_before(layer: Any, norm: str, stream: mx.array) -> mx.array:
    seen: list[mx.array] = []

    def see(call: Any, x: mx.array) -> mx.array:
        seen.append(x)
        return call(x)

    with hooked([(layer[norm], see)]):
        mx.eval(layer(stream, "causal"))
    return token_rms(seen[0])[0]


def _part_changed_by(layer: Any, part: str, stage: Stage, call: PartCall, row: int) -> np.ndarray:
    """(tokens, columns): the change of what the part returns once the output of one row, by expert, has 1 more in each
    column."""
    modules = dict(layer.named_modules())

    def more(call: Any, x: mx.array, indices: mx.array, **kwargs: Any) -> mx.array:
        returned = call(x, indices, **kwargs)
        at = mx.argsort(indices.reshape(-1))[row]
        one = (mx.arange(indices.size) == at).astype(returned.dtype)
        return returned + one.reshape(*indices.shape, 1, 1)

    before = modules[part](*call.args, **call.kwargs)
    with hooked([(modules[stage.paths[0]], more)]):
        after = modules[part](*call.args, **call.kwargs)
    return np.array((after - before)[0])
