"""The order of solving, and who writes to the residual stream, read off a layer that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from quantize.calibrate.given import given, note_returned, noting, rows_of
from quantize.calibrate.stages import find_stages
from quantize.errors import SourceError
from quantize.forward.hooks import hooked, joined
from quantize.forward.models import FolderModel, InFloat32
from tests.support.checkpoints import Gemma4Sizes, gemma4, llama, write
from tests.support.matrices import matrices

LAYER, TOKENS = 1, 24
GEMMA4 = Gemma4Sizes(hidden=64, layers=2, full_every=2, experts=4, mlp_width=64)


@pytest.fixture(params=["llama", "gemma4"])
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    folder = write(tmp_path, *(llama() if request.param == "llama" else gemma4(GEMMA4)))
    return InFloat32(FolderModel(folder)).make(LAYER).layers[LAYER]


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
def test_the_matrices_that_write_to_the_stream_are_found_with_all_that_stands_between(layer: Any, size: float) -> None:
    """However large the stream is beside what is added to it."""
    stream = size * mx.random.normal((1, TOKENS, layer.input_layernorm.weight.size), key=mx.random.key(0))
    stages = find_stages(layer, matrices(layer), (stream, "causal"), {})
    writers = {stage.paths: stage.writer for stage in stages if stage.writer is not None}
    found = {paths: (one.before, one.after, [norm for norm, _ in one.norms]) for paths, one in writers.items()}
    if "post_feedforward_layernorm" in dict(layer.named_modules()):
        after_experts = ["post_feedforward_layernorm_2", "post_feedforward_layernorm"]
        after_mlp = ["post_feedforward_layernorm_1", "post_feedforward_layernorm"]
        assert found == {
            ("self_attn.o_proj",): ("input_layernorm", "pre_feedforward_layernorm", ["post_attention_layernorm"]),
            ("mlp.down_proj",): ("pre_feedforward_layernorm", None, after_mlp),
            ("experts.switch_glu.down_proj",): ("pre_feedforward_layernorm_2", None, after_experts),
        }
    else:
        assert found == {
            ("self_attn.o_proj",): ("input_layernorm", "post_attention_layernorm", []),
            ("mlp.down_proj",): ("post_attention_layernorm", None, []),
        }


def test_a_token_with_a_huge_stream_is_not_all_that_a_matrix_sees(layer: Any) -> None:
    """Nor does it count no more than any other."""
    stream = mx.random.normal((1, TOKENS, layer.input_layernorm.weight.size), key=mx.random.key(0))
    stream = stream * mx.array([100.0] + [1.0] * (TOKENS - 1))[:, None]
    stages = find_stages(layer, matrices(layer), (stream, "causal"), {})
    number = next(at for at, stage in enumerate(stages) if stage.paths == ("self_attn.o_proj",))
    notes: dict[str, mx.array] = {}
    with hooked(joined(dict(layer.named_modules()), noting(number, stages[number], notes))):
        mx.eval(layer(stream, "causal"), notes)
    counted = given(number, stages[number], notes, notes).inputs
    share = mx.linalg.norm(counted, axis=-1) / mx.linalg.norm(notes[rows_of(number)], axis=-1)
    assert 5 < float(share[1:].mean() / share[0]) < 20


@pytest.mark.parametrize("path", ["self_attn.o_proj", "mlp.down_proj"])
def test_what_is_asked_of_a_matrix_brings_the_stream_behind_it_nearer(layer: Any, path: str) -> None:
    """Whatever stands between, as Gemma's norms do: here with gains over four decades."""
    columns = layer.input_layernorm.weight.size
    if "post_feedforward_layernorm" in layer:
        for norm in ("post_attention_layernorm", "post_feedforward_layernorm_1", "post_feedforward_layernorm"):
            layer[norm].weight = 10 ** mx.random.uniform(-3, 1, (columns,), key=mx.random.key(2))
    stream = mx.random.normal((1, TOKENS, columns), key=mx.random.key(0))
    moved = stream + 0.1 * mx.random.normal(stream.shape, key=mx.random.key(1))
    modules = dict(layer.named_modules())
    stages = find_stages(layer, matrices(layer), (stream, "causal"), {})
    number = next(at for at, stage in enumerate(stages) if stage.paths == (path,))
    writer = stages[number].writer
    assert writer is not None

    def run(given_stream: mx.array, returned: mx.array | None = None) -> tuple[dict[str, mx.array], mx.array, mx.array]:
        """The notes, what the matrix returned, and the stream behind it, once it returns `returned`."""
        seen: dict[str, mx.array] = {}

        def matrix(call: Any, x: mx.array) -> mx.array:
            seen["returned"] = call(x) if returned is None else returned
            return seen["returned"]

        def behind(call: Any, x: mx.array) -> mx.array:
            seen["behind"] = x
            return call(x)

        notes: dict[str, mx.array] = {}
        hooks = [*noting(number, stages[number], notes), (path, matrix)]
        with hooked(joined(modules, hooks + ([(writer.after, behind)] if writer.after else []))):
            leaving = layer(given_stream, "causal")
        leaving = leaving[0] if isinstance(leaving, tuple) else leaving
        note_returned(stages, leaving, notes)
        return notes, seen["returned"], seen.get("behind", leaving)

    full_notes, full, true = run(stream)
    quantized_notes, _, _ = run(moved)
    asked = given(number, stages[number], full_notes, quantized_notes)
    assert asked.stream is not None
    counts = asked.inputs / quantized_notes[rows_of(number)]
    move = (asked.stream / counts[:, :1]).reshape(full.shape)
    without, with_it = (mx.linalg.norm(run(moved, one)[2] - true) for one in (full, full + move))
    assert float(with_it) < 0.8 * float(without)


class CalledOften(nn.Module):
    """One matrix for each of several tokens, as Mamba's step has it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(16)
        self.in_proj = nn.Linear(16, 16, bias=False)
        self.step = nn.Linear(16, 16, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.in_proj(self.norm(x))
        return x + mx.concatenate([self.step(y[:, at : at + 1]) for at in range(y.shape[1])], axis=1)


def test_a_matrix_may_be_called_more_than_once_but_not_for_each_token() -> None:
    layer = CalledOften()
    few, many = (mx.random.normal((1, tokens, 16), key=mx.random.key(0)) for tokens in (2, TOKENS))
    assert find_stages(layer, matrices(layer), (few,), {})[0].paths == ("in_proj",)
    with pytest.raises(SourceError, match="calls step token by token"):
        find_stages(layer, matrices(layer), (many,), {})
