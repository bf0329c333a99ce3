"""What the GPU fails at: who is told what, what goes on, and what is kept of it. The errors are those of Metal, raised
by a model that runs on the CPU, in an engine of this process and through a real engine process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ByteSize

from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.decoder import Decoder
from server.engine.device.device import Device
from server.engine.device.failures import explain, is_of_the_device
from server.engine.engine import Engine
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.prefixes.prefix_cache import PrefixCache
from server.engine_client.protocol import Failed, Finished, Generate, Load, Prefilled, Sampling, Tokens
from server.engine_client.supervisor import Supervisor
from server.errors import ConfigiError, EngineFailed, InsufficientMemory
from server.settings.types import CacheSettings, EngineSettings, Settings, StorageSettings
from tests.support.metal import IGNORED, LOST, NO_ROOM, OUT_OF_MEMORY, FakeMetal, failing
from tests.support.questions import TOGETHER, engine_of
from tests.support.running import engines
from tests.support.stepped import a, finish, steps, until
from tests.support.talks import Model
from tests.support.tiny_model import write_tiny_model

# Whoever is to read it fails.
BAD = 440
PROMPT = [70 + at % 40 for at in range(100)]


def request(id: int = 0, *, prompt: list[int] | None = None, max_tokens: int = 8, draws: int | None = None) -> Generate:
    """`draws`: the only token that it may answer with."""
    sampling = Sampling(seed=0, temperature=0, allowed=None if draws is None else [draws])
    prompt = PROMPT if prompt is None else prompt
    return Generate(id=id, prompt=prompt, max_tokens=max_tokens, stop_tokens=[], sampling=sampling)


def bad(id: int) -> Generate:
    return request(id, prompt=[*PROMPT[:50], BAD, *PROMPT[:20]])


# ---- the words


@pytest.mark.parametrize(("words", "kind"), LOST.items())
def test_a_failed_command_buffer_is_the_end_of_the_process(words: str, kind: str) -> None:
    failure = explain(RuntimeError(words))
    assert (failure.lost, failure.kind) == (True, kind)
    assert "starts again" in failure.message


@pytest.mark.parametrize("error", [MemoryError(), *map(RuntimeError, NO_ROOM)])
def test_an_allocation_that_was_refused_is_the_end_of_what_asked_for_it(error: Exception) -> None:
    failure = explain(error)
    assert (failure.lost, failure.kind) == (False, "memory")
    assert is_of_the_device(error)


def test_another_error_is_neither() -> None:
    error = ValueError("[matmul] Last dimension of first input must match")
    assert (explain(error).lost, explain(error).kind) == (False, "internal")
    assert not is_of_the_device(error)


# ---- an engine of this process


@pytest.fixture
def engine(model: Model) -> Engine:
    return engine_of(model.raw, 448)


@pytest.mark.parametrize("words", [*NO_ROOM, "a model with a bug"])
def test_a_prompt_that_fails_ends_alone(model: Model, engine: Engine, words: str) -> None:
    with failing(type(model.raw), words, BAD):
        engine.handle(request(1, max_tokens=40))
        until(engine, a(Tokens))
        engine.handle(bad(2))
        engine.handle(request(3))
        events = finish(engine)
    kind = "internal" if "bug" in words else "memory"
    assert [(event.id, event.kind) for event in events if isinstance(event, Failed)] == [(2, kind)]
    assert sorted(event.id for event in events if isinstance(event, Finished)) == [1, 3]
    assert sum(len(event.tokens) for event in events if isinstance(event, Tokens) and event.id == 3) == 8
    assert engine.lost is None


@pytest.mark.parametrize("look_up", ["restore", "find"])
def test_a_prompt_whose_look_up_fails_ends_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch, look_up: str) -> None:
    real = getattr(PrefixCache, look_up)

    def fail(prefixes: PrefixCache, prompt: Sequence[int], *others: Any) -> Any:
        if BAD in prompt:
            raise RuntimeError("an index with a bug")
        return real(prefixes, prompt, *others)

    monkeypatch.setattr(PrefixCache, look_up, fail)
    engine.handle(request(1))
    engine.handle(bad(2))
    engine.handle(request(3))
    events = finish(engine)
    assert [event.id for event in events if isinstance(event, Failed)] == [2]
    assert sorted(event.id for event in events if isinstance(event, Finished)) == [1, 3]


def test_a_decode_step_that_fails_ends_the_batch_and_no_prompt(model: Model, engine: Engine) -> None:
    with failing(type(model.raw), "a model with a bug", BAD):
        engine.handle(request(1, max_tokens=100))
        engine.handle(request(2, draws=BAD))
        events = until(engine, a(Tokens))
        engine.handle(request(3, prompt=PROMPT * 5))
        events += finish(engine)
    assert sorted(event.id for event in events if isinstance(event, Failed) and event.id) == [1, 2]
    assert [event.id for event in events if isinstance(event, Finished)] == [3]


def test_a_decode_step_that_fails_while_a_prompt_waits_for_it_ends_no_prompt(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Decoder, *, ahead: bool) -> None:
        raise RuntimeError("a model with a bug")

    engine.handle(request(1, max_tokens=100))
    events = until(engine, a(Tokens))
    engine.handle(request(2, prompt=PROMPT * 5))
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", fail)
        events += until(engine, a(Failed))
    events += finish(engine)
    assert [event.id for event in events if isinstance(event, Failed)] == [1]
    assert [event.id for event in events if isinstance(event, Finished)] == [2]


def test_an_answer_that_ends_in_a_step_is_not_lost_when_the_step_fails_later(model: Model, engine: Engine) -> None:
    with failing(type(model.raw), "a model with a bug", BAD):
        engine.handle(request(1, max_tokens=9))
        until(engine, a(Tokens))
        engine.handle(bad(2))
        together = [events for _ in range(40) if (events := engine.step())]
    [step] = [events for events in together if any(isinstance(event, Failed) for event in events)]
    ended = {event.id for events in together for event in events if isinstance(event, Finished)}
    assert {event.id for event in step if isinstance(event, Failed)} == {2}
    assert ended == {1}


@pytest.mark.parametrize("words", LOST)
def test_after_a_failure_of_the_device_nothing_more_is_done_or_written(
    model: Model, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(model.raw, 448)
    engine.handle(request(1))
    finish(engine)
    with failing(type(model.raw), words, BAD):
        engine.handle(request(2, max_tokens=40))
        until(engine, a(Tokens))
        engine.handle(bad(3))
        assert any(engine.lost for _ in steps(engine))
    assert engine.lost is not None
    assert (engine.lost.id, engine.lost.kind) == (None, LOST[words])
    written: list[object] = []
    monkeypatch.setattr(engine._prefixes.disk, "write_one", lambda: written.append(1))
    assert not engine.write_one()
    assert engine.step() == []
    assert written == []


def test_what_leaves_memory_is_not_written_when_the_device_has_failed_meanwhile(model: Model, tmp_path: Path) -> None:
    """Metal may report late what was wrong already: a prefix that makes room for another is not written unasked."""
    metal = FakeMetal(0)
    disk = DiskTier(tmp_path / "prefixes", "model", 10**9)
    options = Load(
        model_dir="", max_concurrent=4, prefill_step_tokens=64, decode_stall_target_s=10, cache_limit=150_000
    )
    admission = Admission(10**10, 0, measure(model.raw))
    engine = Engine(model.raw, 448, options, admission, disk, TOGETHER, Device(metal))
    for id in range(1, 4):
        engine.handle(request(id, prompt=[40 * id + at % 30 for at in range(200)]))
        finish(engine)
    while engine._prefixes.disk.busy:
        engine._prefixes.disk._writer.wait(60)
        engine._prefixes.disk.tend()
    before = sorted((tmp_path / "prefixes").rglob("*-*.safetensors"))
    assert before, "some have left memory"
    metal.pending = IGNORED
    engine.handle(request(4, prompt=[300 + at % 30 for at in range(200)]))
    assert any(engine.lost for _ in steps(engine))
    assert sorted((tmp_path / "prefixes").rglob("*-*.safetensors")) == before


# ---- a real engine process


class Watched:
    """A supervisor over engines that fail with `words` at a token, what it says of their ends, and what is on
    disk."""

    def __init__(self, folder: Path, words: str, token: int = BAD) -> None:
        command = (sys.executable, "-m", "tests.support.failing_engine", words, str(token))
        settings = Settings(
            engine=EngineSettings(restart_backoff_s=0),
            cache=CacheSettings(disk_limit=ByteSize(10**8)),
            storage=StorageSettings(cache_dir=folder / "cache"),
        )
        self.supervisor = Supervisor(settings, command)
        self.exits: list[ConfigiError] = []
        self.supervisor.on_exit = self.exits.append
        self._disk = folder / "cache" / "prefixes"

    def files(self) -> list[Path]:
        return [path for path in self._disk.rglob("*.safetensors") if path.stat().st_size]


@pytest.mark.parametrize("words", [OUT_OF_MEMORY, IGNORED])
def test_a_gpu_that_fails_is_told_as_such_and_the_next_process_serves(tmp_path: Path, words: str) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, words)
        folder = write_tiny_model(tmp_path / "model")
        engine = await watched.supervisor.start(folder)
        try:
            [process] = engines(os.getpid())
            neighbour = engine.generate([request(max_tokens=1900)])
            while not isinstance((await anext(neighbour))[1], Tokens):
                pass
            error = InsufficientMemory if words == OUT_OF_MEMORY else EngineFailed
            for stream in (engine.generate([bad(0)]), neighbour):
                with pytest.raises(error, match="the engine starts again"):
                    async for _, event in stream:
                        assert not isinstance(event, Finished)
            async with asyncio.timeout(20):
                await asyncio.to_thread(process.wait)
            assert [type(exited) for exited in watched.exits] == [error]
            assert watched.files() == [], "what a failed device returned is not kept"
            again = await watched.supervisor.start(folder)
            assert [e async for _, e in again.generate([request()]) if isinstance(e, Finished)]
        finally:
            await watched.supervisor.stop()

    asyncio.run(run())


def test_a_refused_allocation_is_one_error_in_a_process_that_goes_on(tmp_path: Path) -> None:
    async def run() -> None:
        watched = Watched(tmp_path, NO_ROOM[0])
        engine = await watched.supervisor.start(write_tiny_model(tmp_path / "model"))
        try:
            with contextlib.closing(engine.generate([request(max_tokens=300)])) as neighbour:
                while not isinstance((await anext(neighbour))[1], Tokens):
                    pass
                with pytest.raises(InsufficientMemory):
                    async for _, event in engine.generate([bad(0)]):
                        assert isinstance(event, Prefilled)
                events = [event async for _, event in neighbour]
            assert isinstance(events[-1], Finished)
            assert watched.exits == []
        finally:
            await watched.supervisor.stop()

    asyncio.run(run())


def test_a_gpu_that_still_refuses_is_never_ready(tmp_path: Path) -> None:
    """The steps before an engine counts as loaded meet the error: token 3 is one that they read."""

    async def run() -> None:
        watched = Watched(tmp_path, IGNORED, token=3)
        with pytest.raises(EngineFailed, match="exited with status 1"):
            await watched.supervisor.start(write_tiny_model(tmp_path / "model"))
        assert watched.exits == []

    asyncio.run(run())
