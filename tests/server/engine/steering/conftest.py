"""A tiny model, and a way to ask a running engine that has it: one for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from tests.support.steered import Run, steered_engine
from tests.support.tiny_model import write_tiny_model
from tests.support.vocabulary import vocabulary_of


@pytest.fixture(scope="package")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("steering") / "model")


@pytest.fixture(scope="package")
def tokenizer(model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(model)


@pytest.fixture(scope="package")
def vocabulary(tokenizer: ChatTokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer)


@pytest.fixture(scope="package")
def run(model: Path, vocabulary: Vocabulary) -> Iterator[Run]:
    """Calls a test with a way to ask a running engine, the same for all."""
    with steered_engine(model, vocabulary) as run:
        yield run
