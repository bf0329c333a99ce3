"""One generation from its request to its end, read event by event as a dialect does; the engine process is scripted."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from server.chat.conversation import GenerationOptions, GenerationRequest, RawPrompt
from server.chat.deltas import Event, Finish, ModelPending, Started, TextDelta, TokenArray, Usage
from server.engine_client.supervisor import Supervisor
from server.errors import ContextLengthExceeded, ModelLoading, QueueFull, ShuttingDown
from server.generation.places import Place, Queue
from server.generation.step import Generation
from server.generation.waiting import ModelWait
from server.metrics import Metrics
from server.models.acquire import AcquireProgress, Acquirer
from server.models.catalog import Catalog
from server.models.memory import Memory
from server.models.residency import Residency
from server.models.verified import Verifier
from server.settings.types import ModelSettings, Settings
from server.text.client import TextProcess
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("generation") / "model")


class House:
    """A generation with all that stands behind it, on the test's own event loop."""

    def __init__(self, model: Path, *script: str, acquirer: Acquirer | None = None, **sections: Any) -> None:
        entry = ModelSettings(id="tiny", acquire="local", path=model)
        settings = Settings.model_validate({"models": [entry], "cache": {"disk_limit": 0}, **sections})
        catalog = Catalog(settings)
        command = (sys.executable, "-m", "tests.support.scripted_engine", *script)
        self.residency = Residency(
            settings.lifecycle,
            catalog,
            acquirer or Acquirer(settings.storage),
            Verifier(settings.storage),
            Memory(settings.lifecycle),
            lambda: Supervisor(settings, command),
            TextProcess.opener(settings),
        )
        self.generation = Generation(settings, catalog, self.residency, Metrics())

    def generate(self, wait_for_model: bool = False, **options: Any) -> contextlib.aclosing[Any]:
        options = {"max_tokens": 40} | options
        request = GenerationRequest(
            "id", "tiny", RawPrompt("Hello"), GenerationOptions(**options), wait_for_model=wait_for_model
        )
        return contextlib.aclosing(self.generation.generate(request))

    async def all_of(self, **options: Any) -> list[Event]:
        async with self.generate(**options) as events:
            return [event async for event in events]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Of what only changes with the status of the model."""
        while not condition():
            await self.residency.changes.wait()

    def requests(self, outcome: str) -> bool:
        return f'configi_requests_total{{model="tiny",outcome="{outcome}"}} 1.0' in self.generation.metrics().decode()

    @property
    def state(self) -> str:
        return self.generation.default_model().state


@contextlib.asynccontextmanager
async def house(model: Path, *script: str, **sections: Any) -> AsyncIterator[House]:
    up = House(model, *script, **sections)
    try:
        # Only so that a fault of the code ends the test.
        async with asyncio.timeout(60):
            yield up
    finally:
        await up.residency.close()


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


@pytest.mark.parametrize("n", [1, 3])
def test_behind_a_slow_reader_an_answer_ends_at_its_stop_string_and_once(model: Path, n: int) -> None:
    async def run() -> None:
        async with house(model) as h:
            whole = text_of(await h.all_of())
            stop = whole[5:8]
            async with h.generate(n=n, stop=(stop,)) as events:
                assert isinstance(await anext(events), Started)
                # A later request ends later: then all tokens of this one are here, and none has been read.
                await h.all_of()
                rest = [event async for event in events]
            for choice in range(n):
                own = [event for event in rest if isinstance(event, TextDelta | Finish) and event.choice == choice]
                assert text_of(own) == whole[:5]
                assert [event.reason for event in own if isinstance(event, Finish)] == ["stop"]
                assert isinstance(own[-1], Finish)
            assert isinstance(rest[-1], Usage)

    asyncio.run(run())


def test_what_a_full_queue_refuses_is_counted(model: Path) -> None:
    async def run() -> None:
        engine = {"max_concurrent": 1, "queue_limit": 0}
        async with house(model, "--interval", "0.01", engine=engine) as h, h.generate() as events:
            assert isinstance(await anext(events), Started)
            with pytest.raises(QueueFull):
                await h.all_of()
            assert h.requests("queue_full")

    asyncio.run(run())


def test_what_is_refused_because_the_server_shuts_down_is_counted(model: Path) -> None:
    async def run() -> None:
        async with house(model) as h:
            h.generation.drain()
            with pytest.raises(ShuttingDown):
                await h.all_of()
            assert h.requests("shutting_down")

    asyncio.run(run())


class SkippingLoop(asyncio.SelectorEventLoop):
    """An event loop whose time a test can let pass."""

    skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


class SlowAcquirer(Acquirer):
    """Its files come when the test says so."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(settings.storage)
        self.folder = folder
        self.asked = asyncio.Event()
        self.arrived = asyncio.Event()

    def locate(self, model: ModelSettings) -> Path | None:
        return None

    async def acquire(self, model: ModelSettings, progress: Callable[[AcquireProgress], None]) -> Path:
        progress(AcquireProgress("fetching", 3, 10, "3 of 10 bytes"))
        self.asked.set()
        await self.arrived.wait()
        return self.folder


def test_the_longest_wait_is_for_the_files_and_the_weights_together(model: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SkippingLoop)
        files = SlowAcquirer(Settings(), model)
        up = House(model, "--load-seconds", "600", acquirer=files, lifecycle={"load_wait_s": 10_000})
        try:
            answer = asyncio.create_task(up.all_of())
            await files.asked.wait()
            loop.skipped += 6_000
            files.arrived.set()
            await up.until(lambda: up.state == "loading")
            assert not answer.done()
            loop.skipped += 6_000
            async with asyncio.timeout(20):
                with pytest.raises(ModelLoading, match="not ready yet: loading"):
                    await answer
        finally:
            await up.residency.close()

    with asyncio.Runner(loop_factory=SkippingLoop) as runner:
        runner.run(run())


def test_who_gives_up_on_the_tokenizer_is_not_told_that_the_model_is_not_in_memory(model: Path) -> None:
    async def run() -> None:
        async with house(model) as h:
            await h.all_of()
            assert h.state == "ready"
            entry, place = next(iter(h.residency.models)).entry, Place(1, Queue(1), 1)
            with pytest.raises(ModelLoading, match="not ready yet: its tokenizer is being read"):
                await ModelWait(h.residency, entry, place, limit_s=0).news(asyncio.Future())

    asyncio.run(run())


def test_who_waits_for_files_is_told_how_many_bytes_of_how_many(model: Path) -> None:
    async def run() -> None:
        files = SlowAcquirer(Settings(), model)
        async with house(model, acquirer=files) as h, h.generate(wait_for_model=True) as events:
            pending = await anext(events)
            while pending.total is None:
                pending = await anext(events)
            assert pending == ModelPending("fetching: 3 of 10 bytes", "fetching", "tiny", None, 3, 10)
            files.arrived.set()
            assert [event.state async for event in events if isinstance(event, ModelPending)][-1] == "loading"

    asyncio.run(run())


def test_who_gives_up_before_the_files_are_there_finds_the_model_in_memory_at_the_next_try(model: Path) -> None:
    async def run() -> None:
        files = SlowAcquirer(Settings(), model)
        async with house(model, acquirer=files, lifecycle={"load_wait_s": 0.2}) as h:
            for _ in range(3):
                with pytest.raises(ModelLoading):
                    await h.all_of()
            files.arrived.set()
            await h.until(lambda: h.state == "ready")

    asyncio.run(run())


def test_clients_that_leave_while_a_model_comes_up_leave_nothing_behind(model: Path) -> None:
    async def run() -> None:
        files = SlowAcquirer(Settings(), model)
        async with house(model, acquirer=files) as h, h.generate(wait_for_model=True) as kept:
            await anext(kept)
            await files.asked.wait()
            before = asyncio.all_tasks()
            for _ in range(10):
                async with h.generate(wait_for_model=True) as at_news:
                    assert isinstance(await anext(at_news), ModelPending)
                async with h.generate(wait_for_model=True) as waiting:
                    await anext(waiting)
                    next_event = asyncio.create_task(anext(waiting))
                    await asyncio.sleep(0)
                    next_event.cancel()
                    await asyncio.gather(next_event, return_exceptions=True)
            assert asyncio.all_tasks() == before

    asyncio.run(run())


def test_a_request_that_waits_ends_with_the_grace_time(model: Path) -> None:
    async def run() -> None:
        async with house(model, "--load-seconds", "600") as h, h.generate(wait_for_model=True) as events:
            await anext(events)
            next_event = asyncio.create_task(anext(events))
            await asyncio.sleep(0)
            h.generation.drain()
            h.generation.end()
            with pytest.raises(ShuttingDown):
                while True:
                    await next_event
                    next_event = asyncio.create_task(anext(events))

    asyncio.run(run())


def test_more_tokens_than_the_context_holds_are_not_decoded(model: Path) -> None:
    async def run() -> None:
        async with house(model) as h:
            assert await h.generation.detokenize(None, [5] * 2048, "a")
            with pytest.raises(ContextLengthExceeded, match="2048 tokens, these are 2049"):
                await h.generation.detokenize(None, [5] * 2049, "a")

    asyncio.run(run())


def test_counting_tokens_takes_a_place_like_everything_else(model: Path) -> None:
    async def run() -> None:
        async with house(model, engine={"max_concurrent": 1, "queue_limit": 0}) as h:
            counting = [h.generation.tokenize(None, RawPrompt("Hello"), False, "a") for _ in range(3)]
            ended = await asyncio.gather(*counting, return_exceptions=True)
            assert [type(result) for result in ended] == [TokenArray, QueueFull, QueueFull]

    asyncio.run(run())


def test_a_template_that_its_publisher_has_replaced_is_named_in_the_log_and_the_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_tiny_model(tmp_path)
    with (folder / "chat_template.jinja").open("a") as template:
        template.write("{# <|tool_response> #}")

    async def run() -> None:
        async with house(folder) as h:
            assert h.generation.default_model().warning is None
            await h.all_of()
            assert "has replaced (sha256 " in str(h.generation.default_model().warning)

    asyncio.run(run())
    assert any("has replaced (sha256 " in record.getMessage() for record in caplog.records)
