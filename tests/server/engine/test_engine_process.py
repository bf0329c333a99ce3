"""The engine process that starts, dies or refuses its model. No other may run beside it: these look for their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from server.engine_client.supervisor import Supervisor
from server.errors import EngineFailed, ModelUnavailable
from tests.support.engines import engine_settings, generate, tokens
from tests.support.running import engines
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("engine") / "model")


def test_killing_the_engine_ends_what_it_worked_on_with_an_error(model: Path) -> None:
    async def run() -> None:
        supervisor = Supervisor(engine_settings(restart_backoff_s=0))
        exits: list[str] = []
        supervisor.on_exit = lambda error: exits.append(error.message)
        engine = await supervisor.start(model)
        stream = engine.generate([generate(max_tokens=100_000)])
        await anext(stream)
        [child] = engines(os.getpid())
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(EngineFailed, match="killed by SIGKILL"):
            async with asyncio.timeout(10):
                async for _ in stream:
                    pass
        assert len(exits) == 1
        engine = await supervisor.start(model)
        assert await tokens(engine, generate(max_tokens=1))
        await supervisor.stop()
        assert engines(os.getpid()) == []

    asyncio.run(run())


def test_an_engine_that_dies_before_it_connects_is_a_failure_that_counts_and_no_endless_load(model: Path) -> None:
    async def run() -> None:
        settings = engine_settings(restart_backoff_s=0, restart_limit=1)
        supervisor = Supervisor(settings, (sys.executable, "-c", "exit(3)"))
        for gave_up in (False, True):
            with pytest.raises(EngineFailed, match="exited with status 3"):
                async with asyncio.timeout(10):
                    await supervisor.start(model)
            assert supervisor.gave_up == gave_up

    asyncio.run(run())


def test_the_engine_is_told_how_much_a_command_buffer_takes(model: Path) -> None:
    tell = "import os, sys; sys.exit(int(os.environ['MLX_MAX_OPS_PER_BUFFER']))"

    async def run() -> None:
        supervisor = Supervisor(engine_settings(command_buffer_ops=77), (sys.executable, "-c", tell))
        with pytest.raises(EngineFailed, match="exited with status 77"):
            await supervisor.start(model)

    asyncio.run(run())


def test_failures_between_which_the_engine_worked_are_not_in_a_row(model: Path) -> None:
    async def run() -> None:
        supervisor = Supervisor(engine_settings(restart_backoff_s=0, restart_limit=0))
        loading = asyncio.create_task(supervisor.start(model))
        while not (children := engines(os.getpid())):  # noqa: ASYNC110 - a process tells nobody that it is there
            await asyncio.sleep(0.01)
        children[0].kill()
        with pytest.raises(EngineFailed, match="killed by SIGKILL"):
            await loading
        assert supervisor.gave_up
        engine = await supervisor.start(model)
        assert await tokens(engine, generate(max_tokens=1))
        await supervisor.stop()
        assert not supervisor.gave_up

    asyncio.run(run())


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ("[]", "not an object"),
        ("{", "not valid JSON"),
        ("{}", "no valid model_type"),
        ('{"model_type": "../../os"}', "no valid model_type"),
        ('{"model_type": "cache"}', "could not be loaded"),
        ('{"model_type": "no_such_model"}', "not supported"),
        ('{"model_type": "llama", "model_file": "evil.py"}', "never runs"),
    ],
)
def test_a_bad_model_folder_is_one_clear_sentence(tmp_path: Path, config: str, sentence: str) -> None:
    folder = write_tiny_model(tmp_path / "model")
    (folder / "config.json").write_text(config)
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    assert_refused(folder, sentence)


@pytest.mark.parametrize("damage", ["truncated", "empty", "missing"])
def test_a_damaged_shard_is_one_clear_sentence(tmp_path: Path, damage: str) -> None:
    folder = write_tiny_model(tmp_path / "model")
    shard = folder / "model.safetensors"
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[: 1000 if damage == "truncated" else 0])
    assert_refused(folder, "could not be loaded")


def test_what_mlx_raised_for_a_model_that_it_cannot_load_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"")
    assert_refused(folder, "could not be loaded")
    assert "the model cannot be loaded: RuntimeError: " in caplog.text


def test_why_a_model_did_not_load_is_heard_though_the_process_has_ended(tmp_path: Path) -> None:
    """Its words are under way when it ends, and its end may be noticed first."""
    late = (
        "import sys, time, zmq; from server.engine_client.protocol import Failed, encode; print(flush=True);"
        "time.sleep(0.3); context = zmq.Context(); socket = context.socket(zmq.PAIR); socket.connect(sys.argv[1]);"
        "socket.send(encode([Failed(None, 'load', 'No such shape.')])); socket.close(); context.term()"
    )
    ends = (
        "import sys; from subprocess import DEVNULL, PIPE, Popen;"
        f"late = Popen([sys.executable, '-c', {late!r}, sys.argv[1]], stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL);"
        "late.stdout.readline()"
    )

    async def run() -> None:
        supervisor = Supervisor(engine_settings(), (sys.executable, "-c", ends))
        with pytest.raises(ModelUnavailable, match="No such shape"):
            await supervisor.start(tmp_path)

    asyncio.run(run())


def assert_refused(folder: Path, sentence: str) -> None:
    async def run() -> None:
        supervisor = Supervisor(engine_settings())
        with pytest.raises(ModelUnavailable, match=sentence) as raised:
            await supervisor.start(folder)
        assert str(folder) not in raised.value.message
        await supervisor.stop()

    asyncio.run(run())
