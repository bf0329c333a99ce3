"""What keeps a Mac awake, with another command in its place: there while requests run, and never without a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from server.models.awake import Awake
from tests.support.running import children, serving_script
from tests.support.streams import stream, until
from tests.support.tiny_model import write_tiny_model

COMMAND = ("sleep", "6161")


def keepers(pid: int | None = None) -> list[psutil.Process]:
    return [child for child in children(pid or psutil.Process().pid) if child.cmdline() == list(COMMAND)]


def test_one_process_is_there_while_it_is_needed_and_a_little_longer() -> None:
    async def run() -> None:
        awake = Awake(COMMAND, linger_s=0.2)
        assert keepers() == []
        awake.need(True)
        [first] = keepers()
        awake.need(True)
        awake.need(False)
        # The next request of a conversation finds it.
        awake.need(True)
        await asyncio.sleep(0.4)
        assert keepers() == [first]
        awake.need(False)
        async with asyncio.timeout(10):
            while keepers():  # noqa: ASYNC110 - a process tells nobody that it is gone
                await asyncio.sleep(0.05)
        awake.need(True)
        assert len(keepers()) == 1
        awake.close()
        assert keepers() == []

    asyncio.run(run())


def test_without_such_a_command_nothing_runs_and_requests_do(caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        for command in ((), ("/nonexistent/caffeinate",)):
            awake = Awake(command)
            awake.need(True)
            awake.need(True)
            awake.need(False)
            awake.close()

    asyncio.run(run())
    assert len(caplog.records) == 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("awake") / "model")


SCRIPT = ["--awake", " ".join(COMMAND), "--interval", "0.01"]


def test_a_server_holds_it_for_its_streams_all_together(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, SCRIPT) as server:
        pid = server.process.pid
        assert keepers(pid) == []
        with stream(server) as one, stream(server) as other:
            one.text()
            other.text()
            [keeper] = keepers(pid)
        assert server.stop() == 0
        until(lambda: not keeper.is_running())


def test_it_can_be_switched_off(tmp_path: Path, model: Path) -> None:
    with serving_script(tmp_path, model, SCRIPT, lifecycle={"keep_awake": False}) as server, stream(server) as one:
        one.text()
        assert keepers(server.process.pid) == []
