"""How long a model stays in memory as its requests ask for it, on a real server with a scripted engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from server.api.keep_alive import KeepAlive
from tests.support.running import Running, serving_script
from tests.support.streams import stream, until
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("keep-alive") / "model")


def state(server: Running) -> str:
    return str(server.get("/ready")[1]["state"])


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (300, 300), (0, 0), (0.5, 0.5), (-1, math.inf), (-0.5, math.inf), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400),
        ("250ms", 0.25), ("0", 0), ("-1", math.inf), ("-1m", math.inf), ("300", 300), (" 10s ", 10), ("0s", 0),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_at_ollama(given: Any, seconds: float) -> None:
    assert TypeAdapter(KeepAlive).validate_python(given) == pytest.approx(seconds)


@pytest.mark.parametrize("given", ["", "m", "5 m", "5d", "five", "1" * 65 + "s", True, [], {}])
def test_what_is_no_duration_is_refused(given: Any) -> None:
    with pytest.raises(ValidationError, match="should be seconds"):
        TypeAdapter(KeepAlive).validate_python(given)


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/completions": {"prompt": "hi", "max_tokens": 2},
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    "/v1/decisions": {"input": "hi", "questions": [{"type": "predicate", "instructions": "Is it a greeting?"}]},
}


def test_every_dialect_can_have_the_model_unloaded_behind_its_answer(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model) as server:
        for path, body in BODIES.items():
            status, answer = server.post(path, body | {"keep_alive": 0})
            assert status == 200, answer
            until(lambda: state(server) == "absent")
        assert server.engines() == []


def test_the_last_request_that_says_it_decides(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, ["--interval", "0.01"], lifecycle={"idle_unload_s": 0.05}) as server:
        server.chat(max_tokens=1, keep_alive=-1)
        [engine] = server.engines()
        # It says nothing, and takes nothing back.
        server.chat(max_tokens=1)
        with stream(server, keep_alive=0) as running:
            running.text()
            server.chat(max_tokens=1, keep_alive="1h")
        until(lambda: server.get("/metrics")[1].count("cancelled") > 0)
        server.chat(max_tokens=1)
        assert server.engines() == [engine], "what was asked for last is an hour"
        server.chat(max_tokens=1, ttl=0)
        until(lambda: state(server) == "absent")
        # A model that comes up anew has the time of the settings.
        server.chat(max_tokens=1)
        until(lambda: state(server) == "absent")


def test_an_answer_is_not_cut_by_a_request_that_wants_the_model_gone(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, ["--interval", "0.01"]) as server:
        with stream(server, max_tokens=60) as running:
            running.text()
            server.chat(max_tokens=1, keep_alive=0)
            events = list(running.events())
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        until(lambda: state(server) == "absent")
