"""GGUF files written by the test become model folders that stock mlx_lm loads, with the weights they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from mlx_lm import load
from mlx_lm.utils import load_model

from quantize.build.build import build
from quantize.errors import SourceError
from quantize.plan.plan import make_plan
from quantize.source.gguf import GgufCheckpoint, row_order
from quantize.source.gguf_architectures import ARCHITECTURES
from tests.support.gguf import HEADS, HIDDEN, TOKENS, permuted, reference, write_gguf

PROMPT = [[5, 9, 40, 41, 7]]


def convert(gguf: Path, output: Path, dtype: str = "BF16") -> None:
    checkpoint = GgufCheckpoint(gguf, dtype)
    build(checkpoint, make_plan(checkpoint, "source"), output)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_folder_gives_the_logits_of_the_model_that_was_packed(tmp_path: Path, architecture: str) -> None:
    model, weights = reference(architecture)
    gguf = write_gguf(tmp_path / "m.gguf", weights, architecture=architecture)
    convert(gguf, tmp_path / "out", dtype="F32")
    converted, _ = load_model(tmp_path / "out")
    assert mx.allclose(converted(mx.array(PROMPT)), model(mx.array(PROMPT)), atol=1e-4)


def test_gemma_3_has_its_windows_its_scale_and_its_norms_without_what_the_converter_added(tmp_path: Path) -> None:
    # A layer in six looks at everything; the prompt is longer than the window of the others.
    model, weights = reference("gemma3", num_hidden_layers=6, sliding_window=4, query_pre_attn_scalar=8, rope_theta=1e6)
    keys: dict[str, Any] = {
        "gemma3.block_count": 6, "gemma3.attention.sliding_window": 4, "gemma3.attention.key_length": 8,
        "gemma3.rope.freq_base": 1e6,
    }  # fmt: skip
    convert(write_gguf(tmp_path / "m.gguf", weights, architecture="gemma3", **keys), tmp_path / "out", dtype="F32")
    converted, _ = load_model(tmp_path / "out")
    assert mx.allclose(converted(mx.array(PROMPT)), model(mx.array(PROMPT)), atol=1e-4)
    del keys["gemma3.attention.sliding_window"]
    with pytest.raises(SourceError, match=r"lacks gemma3\.attention\.sliding_window"):
        GgufCheckpoint(write_gguf(tmp_path / "other.gguf", weights, architecture="gemma3", **keys))


def test_the_scaled_rope_of_llama_3_is_recovered_from_its_factors(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    sizes = {"head_dim": 64, "rope_theta": 500_000.0}
    model, weights = reference(rope_scaling=scaling, **sizes)
    frequencies = 500_000.0 ** (mx.arange(0, 64, 2) / 64)
    weights["rope_freqs.weight"] = model.model.layers[0].self_attn.rope._freqs / frequencies
    keys = {"llama.attention.key_length": 64, "llama.rope.freq_base": 500_000.0}
    convert(write_gguf(tmp_path / "m.gguf", weights, **keys), tmp_path / "out", dtype="F32")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_scaling"] == scaling
    converted, _ = load_model(tmp_path / "out")
    assert mx.allclose(converted(mx.array(PROMPT)), model(mx.array(PROMPT)), atol=1e-4)
    weights["rope_freqs.weight"] = mx.arange(1.0, 33.0)
    with pytest.raises(SourceError, match="factors that are not Llama 3's"):
        GgufCheckpoint(write_gguf(tmp_path / "other.gguf", weights, **keys))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantized_weights_are_what_the_gguf_package_makes_of_them(tmp_path: Path, kind: str) -> None:
    _, weights = reference()
    type_ = GGMLQuantizationType[kind]
    convert(write_gguf(tmp_path / "m.gguf", weights, kind=type_), tmp_path / "out", dtype="F32")
    found: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    packed = quants.quantize(np.array(weights["blk.1.ffn_down.weight"]), type_)
    expected = quants.dequantize(packed, type_)
    assert np.array_equal(np.array(found["model.layers.1.mlp.down_proj.weight"]), expected)


def test_the_folder_is_a_normal_one_with_tokenizer_and_template(tmp_path: Path) -> None:
    _, weights = reference()
    convert(write_gguf(tmp_path / "m.gguf", weights), tmp_path / "out")
    _, tokenizer = load(str(tmp_path / "out"))
    assert tokenizer.encode("ab<|im_end|>", add_special_tokens=False) == [len(TOKENS) - 1, 2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "Weights are those of the source." in (tmp_path / "out" / "README.md").read_text()
    dtypes = {w.dtype for w in mx.load(str(tmp_path / "out" / "model.safetensors")).values()}  # type: ignore[union-attr]
    assert dtypes == {mx.bfloat16}


def test_the_order_of_the_rows_undoes_the_permutation() -> None:
    weight = mx.random.normal((HIDDEN, 8))
    assert mx.array_equal(permuted(weight, HEADS)[mx.array(row_order(HIDDEN, HEADS))], weight)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": "mamba"},
            "architecture 'mamba' are not supported; supported are llama, qwen2, qwen3, gemma3",
        ),
        ({"llama.expert_count": 8}, "architecture 'llama' with experts are not supported"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn' are not supported"),
        ({"llama.rope.dimension_count": 4}, "rotate only a part of each head"),
        ({"tokenizer.ggml.pre": "tekken"}, "'gpt2' / 'tekken' are not supported; supported are llama, and gpt2 with"),
        ({"tokenizer.ggml.pre": None}, "'gpt2' / None"),
        ({"tokenizer.ggml.model": "bert"}, "'bert' / 'smollm'"),
        ({"llama.block_count": None}, "lacks llama.block_count"),
        ({"tokenizer.ggml.tokens": None}, "holds no tokenizer"),
    ],
)
def test_what_is_not_supported_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    _, weights = reference()
    gguf = write_gguf(tmp_path / "m.gguf", weights, **changes)
    with pytest.raises(SourceError, match=sentence):
        convert(gguf, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf"]


def test_a_file_that_is_no_gguf_and_a_tensor_without_a_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(SourceError, match="cannot be read"):
        convert(tmp_path / "x.gguf", tmp_path / "out")
    (tmp_path / "x.gguf").write_bytes(b"")
    with pytest.raises(SourceError, match="cannot be read"):
        convert(tmp_path / "x.gguf", tmp_path / "out")
    with pytest.raises(SourceError, match=r"blk\.0\.ssm_in\.weight"):
        ARCHITECTURES["llama"].name_in_mlx("blk.0.ssm_in.weight")


def test_a_file_cut_short_anywhere_is_one_sentence(tmp_path: Path) -> None:
    _, weights = reference()
    whole = write_gguf(tmp_path / "m.gguf", weights).read_bytes()
    for length in [*range(0, 12_000, 997), len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"cannot be read as GGUF|is cut short"):
            GgufCheckpoint(tmp_path / "cut.gguf")
