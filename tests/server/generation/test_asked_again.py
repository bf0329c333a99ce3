"""A request that still waited for its turn when the engine ended is asked of the next engine, once.

Real server processes; the engine is scripted and has one slot, so that who waits is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.running import Running, serving_script
from tests.support.streams import (
    assert_ends_with_error,
    running_sequences,
    samples,
    send,
    stream,
    until,
    waiting_sequences,
)
from tests.support.tiny_model import write_tiny_model

QUESTION = {"type": "predicate", "instructions": "Is it?"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("again")
    model = write_tiny_model(folder / "model", context=1_000_000)
    script = ["--slots", "1", "--interval", "0.01"]
    with serving_script(folder, model, script, engine={"restart_backoff_s": 0.01, "restart_limit": 9}) as server:
        yield server


def kill_engine(server: Running) -> None:
    [engine] = server.engines()
    engine.kill()


def asked_again(server: Running) -> float:
    return samples(server).get('configi_requests_asked_again_total{model="tiny"}', 0)


def test_who_waits_when_the_engine_dies_is_answered_by_the_next_one(server: Running) -> None:
    before = asked_again(server)
    with stream(server) as running:
        running.text()
        whole = send(server, stream=False, max_tokens=3)
        with stream(server, max_tokens=3) as waiting:
            until(lambda: waiting_sequences(server) == 2)
            kill_engine(server)
            assert_ends_with_error(running, "killed by SIGKILL")
            *events, done = waiting.events()
            assert done == "[DONE]"
            assert [event["choices"][0]["finish_reason"] for event in events if event["choices"]][-1] == "length"
        response = whole.getresponse()
        assert response.status == 200
        assert json.load(response)["usage"]["completion_tokens"] == 3
        whole.close()
    assert asked_again(server) == before + 2


def test_questions_with_a_decision_are_asked_again_too(server: Running) -> None:
    with stream(server) as running:
        running.text()
        with ThreadPoolExecutor() as clients:
            body = {"input": "The sea is blue.", "questions": [QUESTION]}
            asked = clients.submit(server.post, "/v1/decisions", body)
            until(lambda: waiting_sequences(server) == 1)
            kill_engine(server)
            assert_ends_with_error(running, "killed by SIGKILL")
            assert asked.result()[0] == 200


def test_it_is_asked_again_once_and_what_had_begun_is_not(server: Running) -> None:
    with stream(server) as first, stream(server) as second, stream(server, max_tokens=3) as third:
        first.text()
        until(lambda: waiting_sequences(server) == 2)
        kill_engine(server)
        assert_ends_with_error(first, "killed by SIGKILL")
        # Now it is the second one's turn, and the third waits again.
        second.text()
        until(lambda: (running_sequences(server), waiting_sequences(server)) == (1, 1))
        kill_engine(server)
        assert_ends_with_error(second, "killed by SIGKILL")
        assert_ends_with_error(third, "killed by SIGKILL")
    assert server.chat()[0] == 200
