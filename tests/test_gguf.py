"""GGUF files written by the test become model folders that stock mlx_lm loads, with the weights they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.models import llama
from mlx_lm.utils import load_model
from tokenizers.pre_tokenizers import ByteLevel

from quantize.build.build import build
from quantize.errors import SourceError
from quantize.plan.plan import make_plan
from quantize.source.gguf import GgufCheckpoint, mlx_name, row_order

_HIDDEN, _HEADS, _KV_HEADS, _FEED_FORWARD, _LAYERS = 32, 4, 2, 64, 2
_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "ab"]
_NAMES = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def permuted(weight: mx.array, heads: int) -> mx.array:
    """What llama.cpp's converter does to q and k: halves of each head become interleaved pairs."""
    rows, hidden = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, hidden).swapaxes(1, 2).reshape(rows, hidden)


def reference() -> tuple[llama.Model, dict[str, mx.array]]:
    mx.random.seed(0)
    arguments = llama.ModelArgs(
        model_type="llama", hidden_size=_HIDDEN, num_hidden_layers=_LAYERS, intermediate_size=_FEED_FORWARD,
        num_attention_heads=_HEADS, num_key_value_heads=_KV_HEADS, rms_norm_eps=1e-5, vocab_size=len(_TOKENS),
        rope_theta=10_000.0, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    model = llama.Model(arguments)
    weights = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for index, layer in enumerate(model.model.layers):
        for gguf_name, path in _NAMES.items():
            module: Any = layer
            for part in path.split("."):
                module = module[part]
            heads = {"attn_q": _HEADS, "attn_k": _KV_HEADS}.get(gguf_name)
            weight = module.weight if heads is None else permuted(module.weight, heads)
            weights[f"blk.{index}.{gguf_name}.weight"] = weight
    return model, weights


def write_gguf(path: Path, weights: dict[str, mx.array], **changes: Any) -> Path:
    metadata: dict[str, Any] = {
        "general.architecture": "llama",
        "llama.embedding_length": mx.array(_HIDDEN, mx.uint32),
        "llama.feed_forward_length": mx.array(_FEED_FORWARD, mx.uint32),
        "llama.block_count": mx.array(_LAYERS, mx.uint32),
        "llama.attention.head_count": mx.array(_HEADS, mx.uint32),
        "llama.attention.head_count_kv": mx.array(_KV_HEADS, mx.uint32),
        "llama.attention.layer_norm_rms_epsilon": mx.array(1e-5, mx.float32),
        "llama.rope.freq_base": mx.array(10_000.0, mx.float32),
        "llama.context_length": mx.array(128, mx.uint32),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": _TOKENS,
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.token_type": mx.array([3, 3, 3] + [1] * (len(_TOKENS) - 3), mx.int32),
        "tokenizer.ggml.bos_token_id": mx.array(1, mx.uint32),
        "tokenizer.ggml.eos_token_id": mx.array(2, mx.uint32),
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    } | changes
    mx.save_gguf(str(path), weights, {k: v for k, v in metadata.items() if v is not None})
    return path


def convert(gguf: Path, output: Path, dtype: str = "BF16") -> None:
    checkpoint = GgufCheckpoint(gguf, dtype)
    build(checkpoint, make_plan(checkpoint, "source"), output)


def test_the_folder_gives_the_logits_of_the_model_that_was_packed(tmp_path: Path) -> None:
    model, weights = reference()
    convert(write_gguf(tmp_path / "m.gguf", weights), tmp_path / "out", dtype="F32")
    converted, _ = load_model(tmp_path / "out")
    tokens = mx.array([[5, 9, 40, 41, 7]])
    assert mx.allclose(converted(tokens), model(tokens), atol=1e-4)


def test_the_folder_is_a_normal_one_with_tokenizer_and_template(tmp_path: Path) -> None:
    _, weights = reference()
    convert(write_gguf(tmp_path / "m.gguf", weights), tmp_path / "out")
    _, tokenizer = load(str(tmp_path / "out"))
    assert tokenizer.encode("ab<|im_end|>", add_special_tokens=False) == [len(_TOKENS) - 1, 2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "Weights are those of the source." in (tmp_path / "out" / "README.md").read_text()
    dtypes = {w.dtype for w in mx.load(str(tmp_path / "out" / "model.safetensors")).values()}  # type: ignore[union-attr]
    assert dtypes == {mx.bfloat16}


def test_the_order_of_the_rows_undoes_the_permutation() -> None:
    weight = mx.random.normal((_HIDDEN, 8))
    assert mx.array_equal(permuted(weight, _HEADS)[row_order(_HIDDEN, _HEADS)], weight)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'"),
        ({"tokenizer.ggml.pre": "qwen2"}, "'gpt2' / 'qwen2'"),
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
    with pytest.raises(SourceError, match=r"blk\.0\.ssm_in\.weight"):
        mlx_name("blk.0.ssm_in.weight")
