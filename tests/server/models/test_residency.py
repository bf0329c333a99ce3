"""Absent, loading, ready, unloading, failed: seen from outside, on a real server."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.running import Running, config, running, serving, serving_script
from tests.support.streams import assert_ends_with_error, gauge, send, stream, until
from tests.support.tiny_model import write_tiny_model
from tests.support.two_models import serving_two, states


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("lifecycle") / "model")


def state(server: Running) -> str:
    return str(server.get("/ready")[1]["state"])


def test_the_model_loads_at_the_first_request(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model) as server:
        status, ready = server.get("/ready")
        assert (status, ready["state"]) == (503, "absent")
        assert server.engines() == []
        server.assert_still_serves()
        status, ready = server.get("/ready")
        assert (status, ready["state"], ready["model"]) == (200, "ready", "tiny")


def test_the_model_loads_at_start_when_asked_to(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, lifecycle={"load_at_start": True}) as server:
        until(lambda: state(server) == "ready")


def test_a_stream_that_comes_while_the_model_loads_is_told_so_until_it_starts(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, ["--load-seconds", "0.5"]) as server:
        with stream(server, max_tokens=2) as s:
            lines = [line.decode() for line in s.response]
        assert lines[0].startswith(": loading")
        assert lines[-2] == "data: [DONE]\n"


def test_a_whole_answer_waits_for_the_model_and_gives_up_in_time(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, ["--load-seconds", "4"], lifecycle={"load_wait_s": 2}) as server:
        status, answer = server.chat()
        assert (status, answer["error"]["code"]) == (503, "model_loading")
        until(lambda: server.chat()[0] == 200)


def test_an_idle_model_is_unloaded_and_its_process_ends(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, lifecycle={"idle_unload_s": 0.3}) as server:
        server.assert_still_serves()
        until(lambda: state(server) == "absent")
        assert server.engines() == []
        server.assert_still_serves()


def test_what_was_read_of_a_model_that_is_not_in_memory_is_given_back(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model) as server:
        assert server.post("/tokenize", {"content": "Hello"})[0] == 200
        assert len(server.texts()) == 1
        until(lambda: not server.texts())
        assert server.get("/v1/models/tiny")[1]["context_length"] == 2048
        server.assert_still_serves()
        assert len(server.texts()) == 1


def test_an_idle_unload_that_races_with_requests_loses_none(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, lifecycle={"idle_unload_s": 0.001}) as server:
        answers: list[int] = []
        threads = [threading.Thread(target=lambda: answers.append(server.chat()[0])) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [200] * 4


def test_a_running_request_keeps_its_model_while_another_is_asked_for(tmp_path: Path, model: Path) -> None:
    with serving_two(tmp_path, model, model, "--interval", "0.01") as server:
        with stream(server, max_tokens=100) as s:
            s.text()
            answer: list[Any] = []
            thread = threading.Thread(target=lambda: answer.append(server.chat(model="other", max_tokens=2)))
            thread.start()
            events = list(s.events())
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        thread.join()
        assert answer[0][0] == 200
        assert answer[0][1]["model"] == "other"
        assert len(server.engines()) == 1
        server.assert_still_serves()


def test_a_model_that_nobody_waits_for_any_more_does_not_take_the_place_of_another(tmp_path: Path, model: Path) -> None:
    with serving_two(tmp_path, model, model, "--interval", "0.01") as server, stream(server) as s:
        s.text()
        [engine] = server.engines()
        with stream(server, model="other"):
            until(lambda: states(server)["other"] == "loading")
        until(lambda: states(server)["other"] == "absent")
        # Nor does it keep others from the model that is there.
        assert server.chat(max_tokens=1)[0] == 200
        s.leave()
        assert server.chat(max_tokens=1)[0] == 200
        assert server.engines() == [engine]


def test_the_gauges_of_an_engine_carry_its_model(tmp_path: Path, model: Path) -> None:
    with serving_two(tmp_path, model, model, "--interval", "0.01") as server:
        with stream(server, model="other") as s:
            s.text()
            until(lambda: gauge(server, "configi_engine_running", "other") == 1)
            assert gauge(server, "configi_engine_running", "tiny") == 0
        server.assert_still_serves()
        assert [gauge(server, "configi_engine_starts_total", name) for name in ("tiny", "other")] == [1, 1]
        assert gauge(server, "configi_engine_running", "other") == 0


def test_a_model_whose_engine_gave_up_does_not_count_against_another(tmp_path: Path, model: Path) -> None:
    crashing = shutil.copytree(model, tmp_path / "crashing")
    engine = {"restart_backoff_s": 0.01, "restart_limit": 2}
    with serving_two(tmp_path, crashing, model, "--crash-for", "crashing", engine=engine) as server:
        assert server.chat()[0] == 503
        assert server.get("/health")[0] == 503
        assert server.chat(model="other")[0] == 200
        assert server.get("/health")[0] == 200
        assert states(server) == {"tiny": "failed", "other": "ready"}


def test_an_engine_that_dies_while_another_model_waits_gives_way_to_it(tmp_path: Path, model: Path) -> None:
    with serving_two(tmp_path, model, model, "--interval", "0.01") as server:
        with stream(server) as s:
            s.text()
            answer: list[Any] = []
            thread = threading.Thread(target=lambda: answer.append(server.chat(model="other", max_tokens=2)))
            thread.start()
            until(lambda: states(server)["other"] == "loading")
            [engine] = server.engines()
            engine.kill()
            assert list(s.events())[-1] == "[DONE]"
        thread.join()
        assert answer[0][0] == 200
        assert states(server) == {"tiny": "absent", "other": "ready"}
        server.assert_still_serves()


def test_a_model_that_does_not_fit_in_memory_is_refused_with_the_numbers(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, model, lifecycle={"memory_limit": 1000}) as server:
        status, answer = server.chat()
        assert (status, answer["error"]["code"]) == (503, "insufficient_memory")
        assert state(server) == "failed"
        assert server.engines() == []


@pytest.mark.parametrize("limit", [0, 123_000_000])
def test_the_engine_is_told_how_much_memory_its_model_may_take(tmp_path: Path, model: Path, limit: int) -> None:
    with serving_script(tmp_path, model, lifecycle={"memory_limit": limit}) as server:
        server.assert_still_serves()
        reported = gauge(server, "configi_engine_active_bytes")
    assert reported == limit if limit else 2**20 < reported < 2**50


def test_a_model_that_cannot_be_read_is_failed_before_it_takes_any_memory(tmp_path: Path, model: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    good = (broken / "tokenizer.json").read_bytes()
    (broken / "tokenizer.json").write_text("{")
    settings = {"load_at_start": True, "failed_retry_s": 0.1}
    with serving_script(tmp_path, broken, lifecycle=settings) as server:
        until(lambda: state(server) == "failed")
        status, answer = server.chat()
        assert (status, answer["error"]["code"]) == (503, "model_unavailable")
        assert server.engines() == []
        (broken / "tokenizer.json").write_bytes(good)
        until(lambda: server.chat(max_tokens=1)[0] == 200)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_told_to_stop_while_it_loads_tells_who_waits_and_stops(
    tmp_path: Path, model: Path, how: signal.Signals
) -> None:
    settings = {"shutdown_grace_s": 0.2}
    with serving_script(tmp_path, model, ["--load-seconds", "60"], server=settings) as server, stream(server) as s:
        waiting = send(server, stream=False)
        # Answered after the request above has been read.
        assert server.get("/health")[0] == 200
        until(lambda: bool(server.engines()))
        [engine] = server.engines()
        server.process.send_signal(how)
        assert_ends_with_error(s, "shutting down")
        with contextlib.closing(waiting):
            answer = waiting.getresponse()
            assert (answer.status, json.load(answer)["error"]["code"]) == (503, "shutting_down")
        # Long before an engine that loads would listen.
        assert server.process.wait(20) == 0
        assert not psutil.pid_exists(engine.pid)
        assert "Traceback" not in server.log.read_text()


def test_metrics_tell_the_state_and_count_requests_and_tokens(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model) as server:
        server.assert_still_serves()
        _, text = server.get("/metrics")
        assert 'configi_model_state{model="tiny",state="ready"} 1.0' in text
        assert 'configi_requests_total{model="tiny",outcome="completed"} 1.0' in text
        assert 'configi_tokens_total{kind="completion",model="tiny"} 2.0' in text
        assert 'configi_engine_starts_total{model="tiny"} 1.0' in text


def test_the_log_is_json_lines_with_request_ids_and_no_prompt(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model) as server:
        server.chat(messages=[{"role": "user", "content": "a secret of mine"}])
        # The line is written when the answer has left.
        until(lambda: "completions" in server.log.read_text())
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    [access] = [line for line in lines if line["logger"] == "configi.access" and line["path"].endswith("completions")]
    assert access["status"] == 200
    assert access["request_id"].startswith("req_")
    assert "secret" not in json.dumps(lines)


def test_prompts_and_answers_are_logged_only_when_asked_for(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, log={"prompts": True}) as server:
        _, answer = server.chat(messages=[{"role": "user", "content": "a secret of mine"}])
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    texts = [line for line in lines if line["logger"] == "configi.generation"]
    assert "a secret of mine" in texts[0]["text"]
    assert "".join(line["text"] for line in texts[1:]) == answer["choices"][0]["message"]["content"]


def test_a_folder_named_server_where_the_user_stands_does_not_take_its_place(tmp_path: Path, model: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    command = ["-P", "-m", "server.cli", "serve", "--config", str(config(tmp_path, model))]
    with running(command, tmp_path, cwd=tmp_path) as server:
        server.assert_still_serves()
