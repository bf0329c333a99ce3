"""The streamed pass is the model's own forward pass: the same bits, whatever the family, with one layer in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm import convert
from mlx_lm.utils import load_model

from quantize.errors import SourceError
from quantize.forward.capture import finish
from quantize.forward.checkpoint_weights import CheckpointModel
from quantize.forward.models import FolderModel, InFloat32, open_model
from quantize.forward.routing import recorded, replayed
from quantize.forward.store import InFolder, InMemory
from quantize.forward.stream import Stream
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import gemma4, llama, qwen3_moe, write, write_tokenizer
from tests.support.families import FAMILIES, LAYERS, VOCABULARY, WINDOW, write_family
from tests.support.matrices import calls_of_experts, matrices

# Longer than the sliding window; two lengths.
CHUNKS = [mx.array([[(7 * at + length) % VOCABULARY for at in range(length)]]) for length in (3 * WINDOW, WINDOW + 1)]


def whole(folder: Path, chunk: mx.array) -> mx.array:
    model, _ = load_model(folder)
    return model(chunk)


def streamed(stream: Stream, chunk: int) -> mx.array:
    stream.run()
    return finish(stream.model.make(None), stream.chunks[chunk], stream.hidden(chunk))


# The rest by `make test-slow`.
ALWAYS = {"llama", "qwen3_moe", "gemma3_text", "gpt_oss", "qwen3_next"}
STREAMED = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]


@pytest.mark.parametrize("family", ["gemma4", *STREAMED])
def test_every_family_gives_the_bits_of_its_whole_model(family: str, tmp_path: Path) -> None:
    folder = write_family(tmp_path, family)
    stream = Stream(FolderModel(folder), CHUNKS, InMemory())
    for chunk, tokens in enumerate(CHUNKS):
        expected = whole(folder, tokens)
        assert mx.isfinite(expected).all().item()
        assert mx.array_equal(streamed(stream, chunk), expected).item()


class Fresh:
    """A model that is in memory already, as a `LazyModel`."""

    label = identity = "made by the test"

    def __init__(self, model: Any) -> None:
        self.made = model

    def make(self, layer: int | None) -> Any:
        return self.made


@pytest.mark.parametrize("change", ["h = layer(h) * 2", "h = layer(h) + first", "h = layer(layer(h))", "pass"])
def test_a_model_that_does_more_between_its_layers_is_refused_in_a_sentence(change: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [nn.Linear(4, 4) for _ in range(3)]

        def __call__(self, tokens: mx.array) -> mx.array:
            names = {"h": mx.ones((1, tokens.shape[1], 4)), "first": 0}
            for layer in self.layers:
                names["layer"] = layer
                exec(change, {}, names)
                names["first"] = names["h"]
            return names["h"]

    with pytest.raises(SourceError, match="cannot be streamed"):
        Stream(Fresh(Odd()), CHUNKS, InMemory())


def test_layers_that_share_what_is_no_array_are_refused_in_a_sentence() -> None:
    """Kimi K3's: each adds to what all later ones read."""

    class Shared:
        def __init__(self) -> None:
            self.states: mx.array | None = None

    class Layer(nn.Module):
        def __call__(self, h: mx.array, shared: Shared) -> mx.array:
            shared.states = h if shared.states is None else shared.states + h
            return h + shared.states

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Layer() for _ in range(3)]

        def __call__(self, tokens: mx.array) -> mx.array:
            h, shared = mx.ones((1, tokens.shape[1], 4)), Shared()
            for layer in self.layers:
                h = layer(h, shared)
            return h

    with pytest.raises(SourceError, match="share more than they return, so it cannot be streamed"):
        Stream(Fresh(Model()), CHUNKS, InMemory())


@pytest.mark.parametrize("layout", [gemma4, qwen3_moe])
def test_a_checkpoint_read_part_by_part_is_the_model_that_mlx_lm_loads(layout: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, *layout())
    checkpoint = CheckpointModel(open_checkpoint(str(folder), HubOptions()))
    # The CPU backend multiplies by no stack of bfloat16 experts.
    by_parts, loaded = (Stream(InFloat32(model), CHUNKS, InMemory()) for model in (checkpoint, FolderModel(folder)))
    assert mx.array_equal(streamed(by_parts, 0), streamed(loaded, 0)).item()


@pytest.mark.parametrize("after", [4, 2 * LAYERS - 1], ids=["early", "late"])
def test_a_pass_that_was_ended_goes_on_where_it_was_with_the_same_bits(after: int, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "gemma4_text")
    done: list[tuple[int, int]] = []

    def stop(layer: int, chunk: int) -> None:
        done.append((layer, chunk))
        if len(done) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stream(FolderModel(folder), CHUNKS, InFolder(tmp_path / "states")).run(stop)
    again = Stream(FolderModel(folder), CHUNKS, InFolder(tmp_path / "states"))
    rest: list[tuple[int, int]] = []
    again.run(lambda layer, chunk: rest.append((layer, chunk)))
    assert done + rest == [(layer, chunk) for layer in range(LAYERS) for chunk in range(len(CHUNKS))]
    assert mx.array_equal(streamed(again, 1), whole(folder, CHUNKS[1])).item()


@pytest.mark.parametrize("left", [0, 20, 1000])
def test_what_a_crash_left_cut_short_is_computed_again(left: int, tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "llama")
    Stream(FolderModel(folder), CHUNKS, InFolder(tmp_path / "states")).run()
    (broken,) = (tmp_path / "states").glob(f"chunk-00001-layer-{LAYERS - 1:03d}*")
    with broken.open("r+b") as file:
        file.truncate(left)
    again = Stream(FolderModel(folder), CHUNKS, InFolder(tmp_path / "states"))
    rest: list[tuple[int, int]] = []
    again.run(lambda layer, chunk: rest.append((layer, chunk)))
    assert rest == [(layer, 1) for layer in range(LAYERS)]
    assert mx.array_equal(streamed(again, 1), whole(folder, CHUNKS[1])).item()


def test_what_no_layer_needs_any_more_is_dropped(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "gemma4_text")
    Stream(FolderModel(folder), CHUNKS, InFolder(tmp_path / "states")).run()
    left = sorted(path.name for path in (tmp_path / "states").iterdir() if "layer" in path.name)
    assert left == [f"chunk-{chunk:05d}-layer-{LAYERS - 1:03d}.safetensors" for chunk in range(len(CHUNKS))]


def test_memory_is_that_of_one_layer(tmp_path: Path) -> None:
    config, shapes = llama(layers=24, hidden=256, width=2048)
    folder = write(tmp_path, config, shapes)
    layer = (3 * 2048 * 256 + 3 * 256 * 256) * 2
    stream = Stream(FolderModel(folder), CHUNKS, InMemory())
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    stream.run()
    assert mx.get_peak_memory() - before < 2 * layer
    assert mx.get_active_memory() - before < layer


def test_float32_is_what_the_quantized_weights_say_exactly(tmp_path: Path) -> None:
    source = write(tmp_path / "source", *gemma4())
    convert(str(source), str(tmp_path / "mlx"), quantize=True, q_bits=3, q_group_size=32)
    layer = open_model(str(tmp_path / "mlx"), HubOptions(), float32=True).make(2).layers[2]
    stored, _ = load_model(tmp_path / "mlx")
    kept = stored.layers[2].mlp.down_proj
    scales, biases = kept.scales.astype(mx.float32), kept.biases.astype(mx.float32)
    assert layer.mlp.down_proj.weight.dtype == mx.float32
    expected = mx.dequantize(kept.weight, scales, biases, kept.group_size, kept.bits)
    assert mx.array_equal(layer.mlp.down_proj.weight, expected).item()


def test_other_modes_of_quantization_are_streamed_in_float32_too(tmp_path: Path) -> None:
    source = write_family(tmp_path / "source", "gpt_oss", dtype=mx.bfloat16)
    write_tokenizer(source)
    convert(str(source), str(tmp_path / "mlx"), quantize=True, q_bits=4, q_group_size=32, q_mode="mxfp4")
    stream = Stream(InFloat32(FolderModel(tmp_path / "mlx")), CHUNKS, InMemory())
    assert mx.isfinite(streamed(stream, 0)).all().item()
    experts = stream.model.make(0).layers[0].mlp.experts
    assert experts.down_proj.weight.dtype == mx.float32


def test_rows_and_experts_are_those_that_a_matrix_of_experts_is_called_with(tmp_path: Path) -> None:
    stream = Stream(FolderModel(write_family(tmp_path, "qwen3_moe")), CHUNKS, InMemory())
    layer = stream.model.make(0).layers[0]
    args, kwargs = stream.inputs(0, 0)
    experts = {path: module for path, module in matrices(layer).items() if ".switch_mlp." in path}
    with calls_of_experts(experts) as noted:
        returned = layer(*args, **kwargs)
    assert mx.array_equal(returned, layer(*args, **kwargs)).item()
    tokens, chosen = CHUNKS[0].shape[1], 2
    rows, numbers = noted["mlp.switch_mlp.down_proj"]
    assert rows.shape == (tokens * chosen, 32)
    assert numbers.shape == (tokens * chosen,)
    # The experts' output, from what was noted alone.
    gate, up = (
        mx.einsum("rc,roc->ro", rows, layer.mlp.switch_mlp[name].weight[numbers])
        for name in ("gate_proj", "up_proj")
        for rows, numbers in [noted[f"mlp.switch_mlp.{name}"]]
    )
    assert mx.allclose(nn.silu(gate) * up, rows, atol=1e-5).item()


def test_a_replayed_router_sends_other_hidden_states_to_the_same_experts(tmp_path: Path) -> None:
    stream = Stream(FolderModel(write_family(tmp_path, "qwen3_moe")), CHUNKS, InMemory())
    layer = stream.model.make(0).layers[0]
    args, kwargs = stream.inputs(0, 0)
    router, down = ({path: matrices(layer)[path]} for path in ("mlp.gate", "mlp.switch_mlp.down_proj"))
    with recorded(router) as choices, calls_of_experts(down) as first:
        layer(*args, **kwargs)
    other = args[0][:, ::-1], *args[1:]
    with calls_of_experts(down) as free:
        layer(*other, **kwargs)
    with replayed(router, choices), calls_of_experts(down) as forced:
        layer(*other, **kwargs)
    wanted, unforced, got = (noted["mlp.switch_mlp.down_proj"][1] for noted in (first, free, forced))
    assert mx.array_equal(got, wanted).item()
    assert not mx.array_equal(unforced, wanted).item()
