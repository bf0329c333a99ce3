"""Decisions through the whole server with a scripted engine: what bounds them, what counts them, what ends them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.running import Running, serving_script
from tests.support.streams import running_sequences, samples, stream, until
from tests.support.tiny_model import write_tiny_model

QUESTION = {"type": "predicate", "instructions": "Is it?"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("deciding") / "model", context=256)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    engine = {"max_concurrent": 1, "queue_limit": 0}
    with serving_script(tmp_path_factory.mktemp("up"), model, ("--interval", "0.01"), engine=engine) as running:
        yield running


def decide(server: Running, **fields: Any) -> tuple[int, Any]:
    return server.post("/v1/decisions", {"input": "The sea is blue.", "questions": [QUESTION], **fields})


COMPLETED = 'configi_requests_total{model="tiny",outcome="completed"}'
READ = 'configi_tokens_total{kind="prompt",model="tiny"}'


def test_what_was_asked_is_answered_and_counted(server: Running) -> None:
    before = samples(server)
    status, answer = decide(server)
    assert status == 200, answer
    assert answer["answers"][0]["probability"] == pytest.approx(2 / 3, abs=1e-6)
    after = samples(server)
    assert after[COMPLETED] == before.get(COMPLETED, 0) + 1
    assert after[READ] == before.get(READ, 0) + answer["usage"]["input_tokens"] > before.get(READ, 0) + 20


def test_a_full_queue_is_a_503(server: Running) -> None:
    with stream(server) as running:
        running.text()
        status, answer = decide(server)
    assert (status, answer["error"]["code"]) == (503, "queue_full")
    until(lambda: running_sequences(server) == 0)


def test_what_does_not_fit_is_told_so(server: Running) -> None:
    for fields in ({"input": "sea " * 400}, {"questions": [{**QUESTION, "instructions": "sea " * 400}]}):
        status, answer = decide(server, **fields)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_a_model_that_takes_long_to_load_is_a_503(tmp_path: Path, model: Path) -> None:
    lifecycle = {"load_wait_s": 0.5}
    with serving_script(tmp_path, model, ("--load-seconds", "60"), lifecycle=lifecycle) as slow:
        status, answer = decide(slow)
    assert (status, answer["error"]["code"]) == (503, "model_loading")


def test_the_engine_is_told_that_another_request_is_being_made_ready(tmp_path: Path, model: Path) -> None:
    """The other one's text is so large that it has a process of its own, which is stopped at it."""
    notes = tmp_path / "followed"
    with (
        serving_script(tmp_path, model, ("--note-followed", str(notes))) as server,
        ThreadPoolExecutor() as clients,
    ):
        assert decide(server)[0] == 200
        of_small_ones = server.texts()
        other = clients.submit(decide, server, input="sea " * 30_000)
        until(lambda: len(server.texts()) > len(of_small_ones))
        [at_the_other] = set(server.texts()) - set(of_small_ones)
        at_the_other.suspend()
        assert decide(server)[0] == 200
        at_the_other.resume()
        assert other.result()[0] == 400
    assert notes.read_text().split() == ["0", "1"]
