"""Calibration text as chunks of tokens, by a tokenizer of bytes."""

from __future__ import annotations

from typing import Any

import pytest

from quantize.calibrate.corpus import CalibrationText, Document
from quantize.calibrate.tokens import LENGTH, cut

BEGIN = 256


class Bytes:
    has_chat_template = False

    def __init__(self, begins: bool) -> None:
        self.begins = begins

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BEGIN] * (self.begins and add_special_tokens) + list(text.encode())

    def apply_chat_template(self, messages: list[Any], **options: Any) -> Any:
        raise AssertionError("a model without a template has none to apply")


def text_of(*documents: str) -> CalibrationText:
    return CalibrationText([Document("kind", document) for document in documents], "")


@pytest.mark.parametrize("begins", [True, False])
def test_every_chunk_begins_as_the_model_knows_texts_to_begin_and_no_text_is_lost(begins: bool) -> None:
    long = "".join(f"{number} " for number in range(1000))
    chunks = cut(text_of(long), Bytes(begins), wanted=10_000)
    assert {len(chunk.tokens) for chunk in chunks} == {LENGTH}
    assert all((chunk.tokens[0] == BEGIN) is begins and BEGIN not in chunk.tokens[1:] for chunk in chunks)
    pieces = {bytes(chunk.tokens[begins:]).decode() for chunk in chunks}
    size = LENGTH - begins
    assert pieces == {long[at : at + size] for at in range(0, len(long) - size + 1, size)}


def test_a_chunk_that_begins_with_a_document_does_not_begin_twice() -> None:
    chunks = cut(text_of("a" * (LENGTH - 1), "b" * (LENGTH - 1)), Bytes(begins=True), wanted=10_000)
    assert sorted(chunk.tokens[:3] for chunk in chunks) == [(BEGIN, 97, 97), (BEGIN, 98, 98)]


@pytest.mark.parametrize("gap", ["\n", " ", ""])
def test_a_long_text_is_encoded_in_parts_to_the_same_tokens(gap: str) -> None:
    """A tokenizer takes up to 200 bytes for a character, whatever the memory limit."""

    class Noting(Bytes):
        longest = 0

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            self.longest = max(self.longest, len(text))
            return super().encode(text, add_special_tokens=add_special_tokens)

    tokenizer = Noting(begins=True)
    long = "".join(f"{number}{gap}" for number in range(500_000))
    chunks = cut(text_of(long), tokenizer, wanted=10_000_000)
    assert tokenizer.longest <= 1_000_000 < len(long)
    pieces = {bytes(chunk.tokens[1:]).decode() for chunk in chunks}
    assert pieces == {long[at : at + LENGTH - 1] for at in range(0, len(long) - LENGTH + 2, LENGTH - 1)}
