"""A model that cannot be fetched is built: the real server, builder and engine, and a Hub on loopback."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.loopback_hub import COMMIT, LoopbackHub, hold, hub_environment, loopback_hub, status
from tests.support.running import ROOT, Running, running_script
from tests.support.tiny_model import write_tiny_model

READY, SOURCE = "loopback/ready", "loopback/source"
SHARD = f"GET /{SOURCE}/resolve/{COMMIT}/model.safetensors"
MISSING = f"The Hub has no repository {READY}, or it is private and needs HF_TOKEN."


@dataclass
class Bench:
    hub: LoopbackHub
    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def built(self) -> list[Path]:
        return [path for path in (self.folder / "cache" / "models").glob("*") if not path.name.startswith(".")]

    def serving(self, build_from: str = SOURCE, **storage: Any) -> AbstractContextManager[Running]:
        # What is held is not to be given up meanwhile.
        values = {"cache_dir": str(self.folder / "cache"), "hub_timeout_s": 600, **storage}
        lines = [
            "[server]",
            "port = 0",
            "shutdown_grace_s = 0.5",
            "[storage]",
            *(f"{k} = {json.dumps(v)}" for k, v in values.items()),
        ]
        lines += [
            "[[models]]",
            'id = "tiny"',
            f'fetch = "{READY}"',
            f'build_from = "{build_from}"',
            "calibrate = false",
        ]
        self.config.write_text("\n".join(lines) + "\n")
        return running_script(self.config, ["--real"], self.folder)

    def hold_the_source(self) -> None:
        """The weights stop after half of them; the first request is for the header."""
        self.hub.fault(SHARD, lambda handler: handler.honest(handler.path), times=1)
        self.hub.fault(SHARD, hold(len(self.hub.others[SOURCE]["model.safetensors"]) // 2), times=1)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    source = write_tiny_model(tmp_path / "source")
    files = {path.name: path.read_bytes() for path in source.iterdir()}
    with loopback_hub(LoopbackHub(others={SOURCE: dict(files)})) as hub:
        for name, value in hub_environment(hub, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        yield Bench(hub, tmp_path)


@contextlib.contextmanager
def stream(server: Running) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}
    with contextlib.closing(connection):
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        with connection.getresponse() as response:
            yield response


def configi(*arguments: str) -> str:
    command = [sys.executable, "-m", "server.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_a_model_that_the_hub_lacks_is_built_answers_and_is_found_without_the_hub_from_then_on(bench: Bench) -> None:
    with bench.serving() as server:
        server.assert_still_serves()
        assert f"building from {SOURCE}" in server.log.read_text()
        assert MISSING in server.log.read_text()
    [folder] = bench.built
    assert json.loads((folder / "configi.json").read_text())["source"]["repository"] == SOURCE
    # The source is not kept.
    assert list((bench.folder / "home").rglob("model*.safetensors")) == []
    bench.hub.requests.clear()
    with bench.serving(allow_download=False) as server:
        server.assert_still_serves()
    [row] = json.loads(configi("models", "--config", str(bench.config), "--json"))
    assert row["on_disk"] is True
    assert bench.hub.requests == []


def test_whoever_waits_is_told_how_far_the_build_is(bench: Bench) -> None:
    bench.hold_the_source()
    with bench.serving() as server, stream(server) as response:
        comment = next(line for line in response if line.startswith(b": ") and b"waiting for" in line).decode()
        assert f"building from {SOURCE}, 0%: waiting for model.safetensors" in comment
        code, ready = server.get("/ready")
        assert (code, ready["state"]) == (503, "building")
        assert ready["total"] > 0
        said = configi("status", "--config", str(bench.config), "--port", str(server.port)).split()
        assert "building" in said
        assert "model.safetensors," in said
        bench.hub.closing.set()
        *_, done = (line for line in response if line.startswith(b"data: "))
        assert done == b"data: [DONE]\n"
        assert server.get("/ready")[0] == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_ends_while_it_builds_goes_on_at_its_next_start(bench: Bench, how: signal.Signals) -> None:
    bench.hold_the_source()
    with bench.serving() as server, stream(server):
        assert bench.hub.stalled.wait(60)
        children = server.workers()
        assert children
        server.stop(how, timeout=15)
        gone, alive = psutil.wait_procs(children, timeout=10)
        assert (len(gone), alive) == (len(children), [])
    assert bench.built == []
    assert list((bench.folder / "cache" / "models").glob(".*.building"))
    with bench.serving() as server:
        server.assert_still_serves()
    assert len(bench.built) == 1
    assert list((bench.folder / "cache" / "models").glob(".*.building")) == []


def test_if_neither_the_model_nor_its_source_can_be_had_both_reasons_are_told_once(bench: Bench) -> None:
    gated = (
        f"{SOURCE} is gated: accept its licence at huggingface.co/{SOURCE}, "
        "then set HF_TOKEN to a token of that account."
    )
    bench.hub.fault(f"/api/models/{SOURCE}", status(403, X_Error_Code="GatedRepo"))
    with bench.serving() as server:
        code, answer = server.chat()
        assert (code, answer["error"]["code"]) == (503, "model_unavailable")
        assert answer["error"]["message"] == f"{MISSING} Building it from {SOURCE} failed as well: {gated}"
        assert server.get("/ready")[1]["state"] == "failed"
        assert server.get("/health")[0] == 200


@pytest.mark.slow
def test_a_hub_that_is_away_is_told_once_and_a_source_on_this_machine_does_without(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with bench.serving() as server:
        assert server.chat()[1]["error"]["message"] == "The Hub cannot be reached."
    with bench.serving(allow_download=False) as server:
        refusal = "The model 'tiny' is not on this machine, and storage.allow_download is false."
        assert server.chat()[1]["error"]["message"] == refusal
    with bench.serving(build_from=str(bench.folder / "source"), allow_download=False) as server:
        server.assert_still_serves()


def test_a_built_model_that_was_damaged_is_not_loaded(bench: Bench) -> None:
    with bench.serving() as server:
        server.assert_still_serves()
    [shard] = bench.built[0].glob("*.safetensors")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with bench.serving() as server:
        code, answer = server.chat()
        assert code == 503
        assert answer["error"]["message"] == (
            f"The model's files are damaged, so it is not loaded: {shard.name} is damaged: "
            "its sha256 is not the one in configi.json."
        )
    shard.write_bytes(whole)
    with bench.serving() as server:
        server.assert_still_serves()
