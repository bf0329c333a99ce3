"""The watchdog of the engine counts only silence that this process was awake to hear; and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from server.engine_client.protocol import Generate, Sampling
from server.engine_client.socket_folder import SocketFolder
from server.engine_client.supervisor import Supervisor
from server.settings.types import EngineSettings, Settings
from tests.support.running import engines, serving_script
from tests.support.streams import stream, until
from tests.support.tiny_model import write_tiny_model

_HANG_S = 0.4
# Far longer than the watchdog allows.
_STANDSTILL_S = 4 * _HANG_S
REQUEST = Generate(id=0, prompt=[1], max_tokens=10**9, stop_tokens=[], sampling=Sampling(seed=0))
ENGINE = (sys.executable, "-m", "tests.support.scripted_engine", "--interval", "0.01")


def test_an_engine_is_not_called_hung_for_what_a_blocked_loop_did_not_hear(tmp_path: Path) -> None:
    async def run() -> None:
        supervisor = Supervisor(Settings(engine=EngineSettings(hang_timeout_s=_HANG_S)), ENGINE)
        try:
            client = await supervisor.start(tmp_path)
            with contextlib.closing(client.generate([REQUEST])) as tokens:
                await anext(tokens)
                [engine] = engines(os.getpid())
                # As when the machine sleeps: neither side runs.
                engine.suspend()
                time.sleep(_STANDSTILL_S)  # noqa: ASYNC251
                # A turn of the loop, in which the watchdog looks before the engine could say anything.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert client.silence_s < _HANG_S
                engine.resume()
                for _ in range(200):
                    await anext(tokens)
            assert client.closed is None
        finally:
            await supervisor.stop()

    asyncio.run(run())


def test_streams_go_on_when_the_whole_machine_stood_still(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", context=1_000_000)
    script = ["--interval", "0.01"]
    with serving_script(tmp_path, model, script, engine={"hang_timeout_s": _HANG_S}) as server, stream(server) as s:
        s.text()
        [engine] = server.engines()
        engine.suspend()
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(_STANDSTILL_S)
        server.process.send_signal(signal.SIGCONT)
        engine.resume()
        # More than was buffered on the way.
        for _ in range(300):
            s.text()
        assert [other.pid for other in server.engines()] == [engine.pid]


def test_a_folder_of_a_server_that_was_killed_goes_with_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "serving").mkdir()
    model = write_tiny_model(tmp_path / "model", context=1_000_000)

    def folders() -> set[str]:
        return {path.name for path in tmp_path.glob("configi-*")}

    with serving_script(tmp_path / "serving", model, ["--interval", "0.01"]) as server, stream(server) as s:
        s.text()
        [left] = folders()
        engines = server.engines()
        # One that lives keeps its own.
        other = SocketFolder()
        assert len(folders()) == 2
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(20)
        until(lambda: not any(engine.is_running() for engine in engines))
    assert left in folders()
    next_one = SocketFolder()
    assert folders() == {other.socket.parent.name, next_one.socket.parent.name}
    other.remove()
    next_one.remove()
    next_one.remove()
    assert folders() == set()


def test_a_folder_that_somebody_put_things_into_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "configi-socket-full").mkdir()
    (tmp_path / "configi-socket-full" / "letter").write_text("")
    (tmp_path / "target").mkdir()
    (tmp_path / "configi-socket-link").symlink_to(tmp_path / "target")
    SocketFolder().remove()
    assert {path.name for path in tmp_path.iterdir()} == {"configi-socket-full", "configi-socket-link", "target"}
    assert (tmp_path / "configi-socket-full" / "letter").exists()
