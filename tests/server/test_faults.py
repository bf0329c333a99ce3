"""Faults 22 to 29: whatever dies, hangs, stalls or leaves, a client is told and the next request is served.

Real server processes and sockets; the engine is scripted where a fault needs one on demand, real where it counts.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.running import ROOT, Running, config, serving, serving_script
from tests.support.streams import (
    ENDLESS,
    assert_ends_with_error,
    running_sequences,
    send,
    stream,
    until,
    waiting_sequences,
)
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("faults") / "model", context=1_000_000)


def test_kill_9_of_the_engine_in_a_stream_is_an_error_event_and_the_next_request_works(
    tmp_path: Path, model: Path
) -> None:
    with serving(tmp_path, model, engine={"restart_backoff_s": 0.01}) as server, stream(server) as s:
        s.text()
        [engine] = server.engines()
        engine.kill()
        assert_ends_with_error(s, "killed by SIGKILL")
        server.assert_still_serves()
        [successor] = server.engines()
        assert successor.pid != engine.pid
        assert server.get("/health")[0] == 200


def test_a_hung_engine_is_noticed_ended_and_replaced(tmp_path: Path, model: Path) -> None:
    engine = {"hang_timeout_s": 0.5, "restart_backoff_s": 0.01, "restart_limit": 1}
    script = ["--hang-at-step", "3", "--interval", "0.01"]
    with serving_script(tmp_path, model, script, engine=engine) as server, stream(server) as s:
        s.text()
        [hung] = server.engines()
        assert_ends_with_error(s, "no progress")
        until(lambda: not psutil.pid_exists(hung.pid))
        until(lambda: server.get("/ready")[0] == 200)
        server.assert_still_serves()


@pytest.mark.parametrize("script", ["--exit-at-start", "--crash-at-load"])
def test_an_engine_that_keeps_dying_is_given_up_with_a_clear_state(tmp_path: Path, model: Path, script: str) -> None:
    engine = {"restart_backoff_s": 0.01, "restart_limit": 2}
    with serving_script(tmp_path, model, [script], engine=engine) as server:
        status, answer = server.chat()
        assert status == 503
        assert answer["error"]["code"] == "model_unavailable"
        assert "could not be loaded" in answer["error"]["message"]
        assert server.get("/health")[0] == 503
        status, ready = server.get("/ready")
        assert (status, ready["state"]) == (503, "failed")
        assert server.engines() == []


def test_an_engine_that_dies_as_soon_as_it_is_ready_is_given_up_too(tmp_path: Path, model: Path) -> None:
    engine = {"restart_backoff_s": 0.01, "restart_limit": 2}
    with serving_script(tmp_path, model, ["--crash-when-loaded"], engine=engine) as server:
        assert server.chat()[0] in (500, 503)
        until(lambda: server.get("/ready")[1]["state"] == "failed")
        assert server.chat()[0] == 503


def test_a_model_that_cannot_be_loaded_is_tried_again_after_the_pause(tmp_path: Path, model: Path) -> None:
    config = model / "config.json"
    good = config.read_text()
    config.write_text("{}")
    try:
        with serving(tmp_path, model, lifecycle={"failed_retry_s": 0.2}) as server:
            status, answer = server.chat()
            assert (status, answer["error"]["code"]) == (503, "model_unavailable")
            assert str(model) not in answer["error"]["message"]
            config.write_text(good)
            until(lambda: server.chat(max_tokens=1)[0] == 200)
    finally:
        config.write_text(good)


def test_one_failing_request_does_not_fail_its_neighbour(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, ["--fail-at-token", "5", "--interval", "0.01"]) as server:
        with stream(server) as s:
            assert_ends_with_error(s, "scripted engine fails")
        status, answer = server.chat(max_tokens=8)
        assert (status, answer["error"]["code"]) == (500, "engine_failed")
        server.assert_still_serves()


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_while_decoding_frees_its_slot(tmp_path: Path, model: Path, streaming: bool) -> None:
    with serving(tmp_path, model, engine={"max_concurrent": 1}) as server:
        server.assert_still_serves()
        leaving = send(server, stream=streaming)
        until(lambda: running_sequences(server) == 1)
        leaving.close()
        until(lambda: running_sequences(server) == 0)
        server.assert_still_serves()


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_while_its_prompt_is_read_frees_its_slot(
    tmp_path: Path, model: Path, streaming: bool
) -> None:
    engine = {"max_concurrent": 1, "prefill_step_tokens": 64}
    long = [{"role": "user", "content": "hello world " * 20_000}]
    with serving(tmp_path, model, engine=engine) as server:
        server.assert_still_serves()
        leaving = send(server, messages=long, stream=streaming)
        if streaming:
            progress = iter(leaving.getresponse())
            assert next(line for line in progress if line.startswith(b": prompt") and b" 0 of" not in line)
        until(lambda: running_sequences(server) == 1)
        leaving.close()
        until(lambda: running_sequences(server) == 0)
        server.assert_still_serves()


@pytest.mark.parametrize("streaming", [True, False])
def test_a_client_that_leaves_the_queue_is_forgotten(tmp_path: Path, model: Path, streaming: bool) -> None:
    engine = {"max_concurrent": 1, "queue_limit": 1}
    with serving_script(tmp_path, model, ["--interval", "0.01"], engine=engine) as server, stream(server) as first:
        first.text()
        waiting = send(server, stream=streaming)
        until(lambda: waiting_sequences(server) == 1)
        status, answer = server.chat()
        assert (status, answer["error"]["code"]) == (503, "queue_full")
        waiting.close()
        until(lambda: _joins(server))
        first.leave()
        server.assert_still_serves()


def _joins(server: Running) -> bool:
    """Whether a request finds a place in the queue now."""
    try:
        with stream(server):
            return True
    except AssertionError:
        return False


def test_a_full_queue_says_when_to_come_back_and_at_once(tmp_path: Path, model: Path) -> None:
    engine = {"max_concurrent": 1, "queue_limit": 0}
    with serving_script(tmp_path, model, ["--interval", "0.01"], engine=engine) as server, stream(server) as s:
        s.text()
        connection = send(server)
        response = connection.getresponse()
        assert response.status == 503
        assert int(response.headers["retry-after"]) > 0
        assert json.load(response)["error"]["type"] == "overloaded_error"
        connection.close()


def test_a_reader_that_stalls_is_cut_and_the_others_go_on(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, [], server={"sse_write_timeout_s": 0.5}) as server:
        server.assert_still_serves()
        stalled = socket.socket()
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect(("127.0.0.1", server.port))
        body = json.dumps(ENDLESS | {"max_tokens": 500_000}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        stalled.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        until(lambda: "stalled" in server.log.read_text())
        until(lambda: running_sequences(server) == 0)
        assert "Traceback" not in server.log.read_text()
        server.assert_still_serves()
        stalled.close()


def test_a_port_in_use_is_one_line_at_once(tmp_path: Path, model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        path = config(tmp_path, model, server={"port": port})
        command = [sys.executable, "-m", "server.cli", "serve", "--config", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert f"{port}" in line
    assert "in use" in line


def test_sigterm_lets_a_stream_finish_within_the_grace_time(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, ["--interval", "0.02"]) as server, stream(server, max_tokens=50) as s:
        s.text()
        server.process.send_signal(signal.SIGTERM)
        events = list(s.events())
        assert events[-1] == "[DONE]"
        assert events[-2]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(10) == 0


def test_after_the_grace_time_streams_end_with_an_error_event_and_status_0(tmp_path: Path, model: Path) -> None:
    script = ["--interval", "0.02"]
    with serving_script(tmp_path, model, script, server={"shutdown_grace_s": 0.3}) as server, stream(server) as s:
        s.text()
        server.process.send_signal(signal.SIGTERM)
        assert_ends_with_error(s, "shutting down")
        assert server.process.wait(10) == 0


def test_a_second_signal_exits_now(tmp_path: Path, model: Path) -> None:
    script = ["--interval", "0.02"]
    with serving_script(tmp_path, model, script, server={"shutdown_grace_s": 60}) as server, stream(server) as s:
        s.text()
        [engine] = server.engines()
        server.process.send_signal(signal.SIGTERM)
        until(lambda: _refuses(server))
        server.process.send_signal(signal.SIGINT)
        # Long before the grace time is over.
        server.process.wait(20)
        until(lambda: not psutil.pid_exists(engine.pid))


def _refuses(server: Running) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
    except OSError:
        return True
    return False


def test_an_engine_that_does_not_listen_is_killed_at_the_end_without_a_false_word_in_the_log(
    tmp_path: Path, model: Path
) -> None:
    with serving_script(tmp_path, model, engine={"load_timeout_s": 0.5}, log={"level": "warning"}) as server:
        server.assert_still_serves()
        [engine] = server.engines()
        engine.suspend()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert not psutil.pid_exists(engine.pid)
        assert server.log.read_text() == ""


def test_an_engine_may_write_as_much_to_its_log_as_it_likes(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, ["--noise", "3000000"], engine={"load_timeout_s": 5}) as server:
        server.assert_still_serves()


def test_a_stopped_engine_in_a_stream_is_a_hung_one(tmp_path: Path, model: Path) -> None:
    engine = {"hang_timeout_s": 0.5, "restart_backoff_s": 0.01}
    with serving(tmp_path, model, engine=engine) as server, stream(server) as s:
        s.text()
        server.engines()[0].suspend()
        assert_ends_with_error(s, "no progress")
        server.assert_still_serves()


def test_the_engine_does_not_outlive_a_server_that_was_killed(tmp_path: Path, model: Path) -> None:
    with serving(tmp_path, model) as server:
        server.assert_still_serves()
        [engine] = server.engines()
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(5)
        until(lambda: not psutil.pid_exists(engine.pid))
