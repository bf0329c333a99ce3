"""GGUF files written by the test become model folders that stock mlx_lm loads, with the weights they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.utils import load_model

from quantize.build.build import build
from quantize.errors import SourceError
from quantize.plan.plan import make_plan
from quantize.source.gguf import GgufCheckpoint, mlx_name, row_order
from tests.support.gguf import HEADS, HIDDEN, TOKENS, permuted, reference, write_gguf


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
    assert tokenizer.encode("ab<|im_end|>", add_special_tokens=False) == [len(TOKENS) - 1, 2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"] == 2
    assert "Weights are those of the source." in (tmp_path / "out" / "README.md").read_text()
    dtypes = {w.dtype for w in mx.load(str(tmp_path / "out" / "model.safetensors")).values()}  # type: ignore[union-attr]
    assert dtypes == {mx.bfloat16}


def test_the_order_of_the_rows_undoes_the_permutation() -> None:
    weight = mx.random.normal((HIDDEN, 8))
    assert mx.array_equal(permuted(weight, HEADS)[row_order(HIDDEN, HEADS)], weight)


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
