"""A server whose model comes from a Hub: what clients see meanwhile, and what is left when it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.loopback_hub import COMMIT, REPO, LoopbackHub, hub_environment, loopback_hub, stall
from tests.support.running import ROOT, Running, running_script
from tests.support.streams import Stream, assert_ends_with_error, stream, until
from tests.support.tiny_model import write_tiny_model

WEIGHTS = f"GET /{REPO}/resolve/{COMMIT}/model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    model = write_tiny_model(tmp_path / "model")
    with loopback_hub(LoopbackHub({path.name: path.read_bytes() for path in model.iterdir()})) as hub:
        for name, value in hub_environment(hub, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield hub


def config(folder: Path, **sections: Mapping[str, Any]) -> Path:
    lines = ["[server]", "port = 0", "shutdown_grace_s = 0.2"]
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    lines += ["[[models]]", 'id = "tiny"', 'acquire = "fetch"', f'fetch = "{REPO}"']
    path = folder / "config.toml"
    path.write_text("\n".join(lines))
    return path


def serving(folder: Path, **sections: Mapping[str, Any]) -> contextlib.AbstractContextManager[Running]:
    return running_script(config(folder, **sections), (), folder)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_transfer_is_a_bar_on_a_terminal_and_plain_lines_elsewhere(
    tmp_path: Path, hub: LoopbackHub, terminal: bool
) -> None:
    hub.fault(WEIGHTS, stall, times=1)
    path = config(tmp_path, storage={"hub_timeout_s": 1}, lifecycle={"load_at_start": True})
    ours, theirs = os.openpty() if terminal else os.pipe()
    command = [sys.executable, "-m", "server.cli", "serve", "--config", str(path)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "150"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, cwd=ROOT, env=environment) as process:
        os.close(theirs)
        shown = ""
        try:
            while "tiny: in memory" not in shown:
                shown += os.read(ours, 4096).decode()
        finally:
            process.terminate()
    os.close(ours)
    assert "tiny: loading into memory" in shown
    assert ("━" in shown) is terminal
    assert ("\x1b" in shown) is terminal


def workers(server: Running) -> list[psutil.Process]:
    return server.workers()


def test_while_the_model_is_fetched_streams_wait_and_the_rest_is_told_when_to_come_back(
    tmp_path: Path, hub: LoopbackHub
) -> None:
    hub.fault(WEIGHTS, stall, times=1)
    settings = {"storage": {"hub_timeout_s": 2}, "lifecycle": {"load_wait_s": 0.2}}
    with serving(tmp_path, **settings) as server, stream(server, max_tokens=2) as s:
        assert hub.stalled.wait(20)
        status, ready = server.get("/ready")
        assert (status, ready["state"]) == (503, "fetching")
        assert 0 <= ready["done"] < ready["total"]
        for status, answer in (server.chat(), server.post("/tokenize", {"content": "a"})):
            assert (status, answer["error"]["code"]) == (503, "model_loading")
        lines = [line.decode() for line in s.response]
        assert lines[0].startswith(": fetching")
        assert lines[-2] == "data: [DONE]\n"
        assert not any("error" in line for line in lines)
        server.assert_still_serves()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_while_it_fetches_leaves_no_worker_and_the_next_goes_on(
    tmp_path: Path, hub: LoopbackHub, how: signal.Signals
) -> None:
    hub.fault(WEIGHTS, stall, times=1)
    with serving(tmp_path) as server, stream(server) as s:
        assert hub.stalled.wait(20)
        [worker] = workers(server)
        until(lambda: bool(list((tmp_path / "home").rglob("tokenizer.json"))))
        server.process.send_signal(how)
        if how is signal.SIGTERM:
            assert_ends_with_error(s, "shutting down")
        assert server.process.wait(5) == (0 if how is signal.SIGTERM else -how)
        until(lambda: not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE)
    with serving(tmp_path) as server:
        server.assert_still_serves()
    # What was whole is kept.
    [_] = [line for line in hub.requests if line.startswith("GET") and line.endswith("tokenizer.json")]


def test_a_client_that_leaves_does_not_stop_the_transfer(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.fault(WEIGHTS, stall, times=1)
    with serving(tmp_path, storage={"hub_timeout_s": 1}) as server:
        leaving = Stream(server)
        assert hub.stalled.wait(20)
        leaving.leave()
        until(lambda: server.get("/ready")[1]["text"] == "on disk, not in memory")
        assert workers(server) == []
        server.assert_still_serves()


def test_a_model_whose_files_were_deleted_under_the_server_is_fetched_again(tmp_path: Path, hub: LoopbackHub) -> None:
    settings = {"lifecycle": {"idle_unload_s": 0.1, "failed_retry_s": 0.1}}
    with serving(tmp_path, **settings) as server:
        server.assert_still_serves()
        until(lambda: server.get("/ready")[1]["state"] == "absent")
        shutil.rmtree(tmp_path / "home")
        until(lambda: server.chat(max_tokens=1)[0] == 200)
        assert [line for line in hub.requests if line.endswith("model.safetensors")]
