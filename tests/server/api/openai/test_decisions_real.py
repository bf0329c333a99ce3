"""`client.decisions.create` with a real server and a real (tiny) model: the numbers are those of the bare model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.utils import load_model
from openai import OpenAI

from server.api.openai.decisions.request import parse_decision
from server.chat.processor import Processor
from server.chat.tokenizers.conversion import Conversions
from server.engine_client.protocol import Branch, ScoreOptions
from server.settings.types import LimitSettings
from tests.support.questions import bare_scores
from tests.support.running import Running, serving
from tests.support.tiny_model import write_tiny_model

INPUT = "Once upon a time there was a little house in the middle of the forest. " * 8
QUESTIONS: Any = [
    {"type": "predicate", "instructions": "Is there a house?"},
    {"type": "choice", "instructions": "Where?", "choices": [{"value": "the sea"}, {"value": "the forest"}]},
    {"type": "choice", "instructions": "And?", "choices": [{"value": "no"}, {"value": "no way"}, {"value": True}]},
    {"type": "score", "instructions": "How old?", "levels": [{"label": x} for x in ("new", "old", "very old")]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("decisions") / "model")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("up"), model) as running:
        yield running


def test_probabilities_are_the_models_own(server: Running, model: Path) -> None:
    body = {"model": "", "input": INPUT, "questions": QUESTIONS}
    with OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        cold = client.decisions.create(**body)
        warm = client.decisions.create(**body)

    expected, read = expectation(model, body)
    assert [[round(p, 4) for p in shares(answer)] for answer in cold.answers] == [
        [round(p, 4) for p in wanted] for wanted in expected
    ]
    assert [shares(answer) for answer in warm.answers] == [pytest.approx(shares(answer)) for answer in cold.answers]
    assert cold.answers[3].type == "score"
    assert cold.answers[3].score == pytest.approx(expected[3][1] + 2 * expected[3][2], abs=1e-4)

    shared, questions = read
    for usage, cached in ((cold.usage, 0), (warm.usage, shared - 1)):
        assert (usage.input_tokens, usage.total_tokens) == (shared + questions, shared + questions)
        assert usage.input_tokens_details.cached_tokens == cached


def test_prefixes_are_shared_only_with_those_of_the_same_salt(server: Running) -> None:
    def cached(salt: str) -> int:
        body = {"input": "Salted: " + INPUT, "questions": QUESTIONS[:1], "cache_salt": salt}
        number: int = server.post("/v1/decisions", body)[1]["usage"]["input_tokens_details"]["cached_tokens"]
        return number

    assert cached("a") == cached("b") == 0
    assert cached("a") > 0


def shares(answer: Any) -> list[float]:
    if answer.type == "predicate":
        return [answer.probability, 1 - answer.probability]
    return [option.probability for option in answer.probabilities]


def expectation(model: Path, body: dict[str, Any]) -> tuple[list[list[float]], tuple[int, int]]:
    """The shares of each question by the bare model; the tokens that all questions share, and their own."""
    inquiry = parse_decision(json.dumps(body).encode(), LimitSettings()).inquiry
    encoded = Processor.load(model, None, Conversions()).encode_inquiry(inquiry)
    branches = [Branch(question.ids, question.options) for question in encoded.questions]
    raw, _ = load_model(model)
    scores = bare_scores(raw, ScoreOptions(id=0, prompt=encoded.ids, branches=branches))
    wanted = []
    for logprobs in scores:
        weights = [math.exp(logprob) for logprob in logprobs]
        wanted.append([weight / sum(weights) for weight in weights])
    return wanted, (len(encoded.ids), sum(len(question.ids) for question in encoded.questions))
