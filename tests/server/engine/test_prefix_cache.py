"""Prefix reuse through the real engine process: never another answer than a cold start gives, whatever happened before.

The reference is the raw model without any cache. Two real models: one whose layers are all trimmable, and a Gemma 4
with sliding windows far shorter than the prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from pydantic import ByteSize

from server.engine import kv
from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.disk_tier import DiskTier
from server.engine.engine import Engine
from server.engine.prefill import Prefill, read_together
from server.engine.prefix_cache import PrefixCache
from server.engine.rehearsal import Together
from server.engine_client.client import EngineClient
from server.engine_client.protocol import Boundary, Generate, Kind, Load, Prefilled, Sampling, Tokens
from server.engine_client.supervisor import Supervisor
from server.settings.types import CacheSettings, EngineSettings, Settings, StorageSettings
from tests.support.running import serving
from tests.support.sliding_model import WINDOW, write_sliding_model
from tests.support.tiny_model import write_tiny_model

GREEDY = Sampling(seed=0, temperature=0)
ANSWER = 8


@dataclass
class Model:
    folder: Path
    raw: Any

    def greedy(self, prompt: Sequence[int]) -> list[int]:
        made: list[int] = []
        for _ in range(ANSWER):
            made.append(int(mx.argmax(self.raw(mx.array([[*prompt, *made]]))[0, -1]).item()))
        return made


@pytest.fixture(scope="module", params=["trimmable", "sliding"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / request.param
    (write_tiny_model if request.param == "trimmable" else write_sliding_model)(folder)
    return Model(folder, load_model(folder)[0])


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_sliding_model(tmp_path_factory.mktemp("models") / "sliding")
    return Model(folder, load_model(folder)[0])


@dataclass
class Talk:
    """A conversation as tokens: each message ends at a boundary."""

    rng: random.Random
    tokens: list[int] = field(default_factory=list)
    boundaries: list[Boundary] = field(default_factory=list)

    def say(self, kind: Kind, words: int | list[int]) -> Talk:
        self.tokens = [*self.tokens, *(self._words(words) if isinstance(words, int) else words)]
        self.boundaries = [*self.boundaries, Boundary(len(self.tokens), kind)]
        return self

    def asked(self) -> tuple[list[int], list[Boundary]]:
        """With what opens the reply and is not in the history later."""
        return [*self.tokens, 5, 6, 7], self.boundaries

    def _words(self, count: int) -> list[int]:
        return [self.rng.randrange(10, 448) for _ in range(count)]


def new_talk(seed: int) -> Talk:
    return Talk(random.Random(seed)).say("system", 50).say("user", 60)


def generate(prompt: Sequence[int], boundaries: Sequence[Boundary] = (), **fields: Any) -> Generate:
    fields = {"id": 0, "max_tokens": ANSWER, "stop_tokens": [], "sampling": GREEDY} | fields
    return Generate(prompt=list(prompt), boundaries=list(boundaries), **fields)


async def ask(engine: EngineClient, talk: Talk, salt: str = "") -> tuple[list[int], int]:
    """The answer, and how many prompt tokens were not read again."""
    made: list[int] = []
    cached = 0
    async for _, event in engine.generate([generate(*talk.asked(), cache_salt=salt)]):
        if isinstance(event, Tokens):
            made += event.tokens
        elif isinstance(event, Prefilled):
            cached = max(cached, event.cached)
    return made, cached


@contextlib.asynccontextmanager
async def engine_for(folder: Path, disk: Path | None = None, **cache: int) -> AsyncIterator[EngineClient]:
    sizes = {name: ByteSize(size) for name, size in ({"disk_limit": 10**9 if disk else 0} | cache).items()}
    settings = Settings(
        engine=EngineSettings(prefill_step_tokens=16),
        cache=CacheSettings(**sizes),
        storage=StorageSettings(cache_dir=disk or Path("unused")),
    )
    supervisor = Supervisor(settings)
    try:
        yield await supervisor.start(folder)
    finally:
        await supervisor.stop()


def with_engine(model: Model, test: Callable[[EngineClient], Coroutine[Any, Any, None]], **cache: int) -> None:
    async def run() -> None:
        async with engine_for(model.folder, **cache) as engine:
            await test(engine)

    asyncio.run(run())


def test_each_turn_reads_only_what_is_new_and_answers_as_a_cold_start_would(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(1)
        expected_cached = 0
        for _ in range(4):
            answer, cached = await ask(engine, talk)
            assert answer == model.greedy(talk.asked()[0])
            assert cached >= expected_cached
            expected_cached = len(talk.tokens)
            talk.say("assistant", answer).say("user", 20)

    with_engine(model, test)


def test_a_tool_loop_reuses_up_to_the_last_result_though_the_reply_opens_with_what_history_drops(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(2)
        assert len(talk.tokens) > 3 * WINDOW
        counts = []
        for _ in range(4):
            _, cached = await ask(engine, talk)
            counts.append(cached)
            before = len(talk.tokens)
            # The call as the history tells it, and the tool's result.
            talk.say("assistant", 12).say("user", 25)
            assert cached <= before
        assert counts[0] == 0
        lengths = [110 + 37 * step for step in range(3)]
        assert all(cached >= length for cached, length in zip(counts[1:], lengths, strict=True)), counts

    with_engine(model, test)


def test_a_sibling_question_reuses_the_system_prompt(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        system = [random.Random(9).randrange(10, 448) for _ in range(100)]
        for seed in range(3):
            talk = Talk(random.Random(seed)).say("system", system).say("user", 30)
            answer, cached = await ask(engine, talk)
            assert answer == model.greedy(talk.asked()[0])
            assert cached >= (100 if seed else 0)

    with_engine(model, test)


def test_two_conversations_at_once_do_not_mix(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        talks = [new_talk(3), new_talk(4)]
        for _ in range(3):
            answers = await asyncio.gather(*(ask(engine, talk) for talk in talks))
            for talk, (answer, _) in zip(talks, answers, strict=True):
                assert answer == model.greedy(talk.asked()[0])
                talk.say("assistant", answer).say("user", 15)

    with_engine(model, test)


def test_short_prompts_are_read_together_and_answered_as_alone(model: Model) -> None:
    options = Load(model_dir="", max_concurrent=8, prefill_step_tokens=2048, cache_limit=10**9)
    admission = Admission(10**9, 0, measure(model.raw))
    engine = Engine(model.raw, 448, options, admission, DiskTier(None, "", 0), Together())
    # The first prompts tell how fast this machine is; then chunks are large.
    answers(engine, [generate(*new_talk(seed).asked(), id=seed) for seed in range(300, 304)])
    talks = [new_talk(seed).say("assistant", 9).say("user", seed) for seed in range(20, 26)]
    requests = [generate(*talk.asked(), id=index) for index, talk in enumerate(talks)]
    assert answers(engine, requests) == {request.id: model.greedy(request.prompt) for request in requests}


def test_prompts_that_are_read_together_fill_the_caches_that_they_fill_alone(model: Model) -> None:
    requests = [generate(new_talk(seed).tokens[: 40 + 15 * seed], id=seed) for seed in range(4)]
    together, alone = ([Prefill(model.raw, request) for request in requests] for _ in range(2))
    for prefill in together + alone:
        prefill.start(None, 0)
    for tokens in (30, 8):
        read_together(model.raw, [(prefill, tokens + prefill.id) for prefill in together])
        for prefill in alone:
            prefill.read(tokens + prefill.id)
    for ours, reference in zip(together, alone, strict=True):
        assert ours.done == reference.done
        segments = (kv.extract(prefill.layers, 0, prefill.done) for prefill in (ours, reference))
        for got, expected in zip(*segments, strict=True):
            assert mx.allclose(got.keys, expected.keys, atol=1e-3)
            assert mx.allclose(got.values, expected.values, atol=1e-3)


def answers(engine: Engine, requests: Sequence[Generate]) -> dict[int, list[int]]:
    made: dict[int, list[int]] = {request.id: [] for request in requests}
    for request in requests:
        engine.handle(request)
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Tokens):
                made[event.id] += event.tokens
    return made


def test_a_cancelled_prefill_keeps_what_it_read(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        talk = Talk(random.Random(5)).say("system", 50).say("user", 800)
        stream = engine.generate([generate(*talk.asked())])
        async for _, event in stream:
            if isinstance(event, Prefilled) and event.done > 400:
                break
        stream.close()
        answer, cached = await ask(engine, talk)
        assert cached > 400
        assert answer == model.greedy(talk.asked()[0])

    with_engine(model, test)


def test_an_edited_message_in_the_middle_is_read_anew_from_there(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(6).say("assistant", 20).say("user", 40)
        await ask(engine, talk)
        edited = Talk(random.Random(7)).say("system", talk.tokens[:50])
        edited.say("user", [*talk.tokens[50:80], 11, *talk.tokens[81:110]])
        edited.say("assistant", talk.tokens[110:130]).say("user", talk.tokens[130:])
        answer, cached = await ask(engine, edited)
        assert answer == model.greedy(edited.asked()[0])
        assert 50 <= cached <= 80

    with_engine(model, test)


def test_choices_of_one_request_read_their_prompt_once(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        prompt, boundaries = new_talk(8).asked()
        cached = [0, 0, 0]
        made: list[list[int]] = [[], [], []]
        async for index, event in engine.generate([generate(prompt, boundaries)] * 3):
            if isinstance(event, Prefilled):
                cached[index] = max(cached[index], event.cached)
            elif isinstance(event, Tokens):
                made[index] += event.tokens
        assert made == [model.greedy(prompt)] * 3
        assert min(cached) == 0
        assert sorted(cached)[1] >= 110

    with_engine(model, test)


def test_a_restart_finds_the_conversation_on_disk(model: Model, tmp_path: Path) -> None:
    async def run() -> None:
        talk = new_talk(10)
        async with engine_for(model.folder, tmp_path) as engine:
            answer, _ = await ask(engine, talk)
        talk.say("assistant", answer).say("user", 20)
        async with engine_for(model.folder, tmp_path) as engine:
            answer, cached = await ask(engine, talk)
            assert cached >= 110
            assert answer == model.greedy(talk.asked()[0])

    asyncio.run(run())


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "garbage", "deleted"])
def test_a_damaged_file_is_a_miss_and_never_an_error(model: Model, tmp_path: Path, damage: str) -> None:
    async def run() -> None:
        talk = new_talk(11)
        async with engine_for(model.folder, tmp_path) as engine:
            expected, _ = await ask(engine, talk)
        files = list(stored(tmp_path))
        assert files
        for path in files:
            spoil(path, damage)
        async with engine_for(model.folder, tmp_path) as engine:
            assert await ask(engine, talk) == (expected, 0)
            assert (await ask(engine, talk))[0] == expected

    asyncio.run(run())


def stored(folder: Path) -> Iterator[Path]:
    return (folder / "prefixes").glob("*/*.safetensors")


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "deleted":
        path.unlink()
    elif damage == "flipped":
        content[-100] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes({"truncated": bytes(content[:-50]), "empty": b"", "garbage": b"x" * 1000}[damage])


def test_prompts_on_disk_are_for_their_owner_only_and_within_the_limit(sliding: Model, tmp_path: Path) -> None:
    async def run() -> None:
        limit = 150_000
        async with engine_for(sliding.folder, tmp_path, disk_limit=limit) as engine:
            for seed in range(12):
                await ask(engine, new_talk(100 + seed))
        files = list(stored(tmp_path))
        assert 0 < sum(path.stat().st_size for path in files) <= limit
        assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
        assert {path.parent.stat().st_mode & 0o777 for path in files} == {0o700}

    asyncio.run(run())


def test_another_model_never_uses_the_files(sliding: Model, tmp_path: Path) -> None:
    async def run() -> None:
        other = write_sliding_model(tmp_path / "other", seed=1)
        talk = new_talk(12)
        async with engine_for(sliding.folder, tmp_path) as engine:
            await ask(engine, talk)
        async with engine_for(other, tmp_path) as engine:
            _, cached = await ask(engine, talk)
            assert cached == 0

    asyncio.run(run())


def test_memory_for_prefixes_is_bounded_and_the_system_prompt_goes_last(model: Model) -> None:
    limit = 300_000

    async def test(engine: EngineClient) -> None:
        system = [random.Random(13).randrange(10, 448) for _ in range(100)]
        for seed in range(10):
            talk = Talk(random.Random(200 + seed)).say("system", system).say("user", 60)
            answer, cached = await ask(engine, talk)
            assert cached >= (100 if seed else 0)
            assert answer == model.greedy(talk.asked()[0])
            assert engine.stats is not None
            assert engine.stats.prefix_bytes <= limit
        assert engine.stats.prefix_bytes > limit / 4

    with_engine(model, test, memory_limit=limit)


def test_a_limit_of_zero_keeps_nothing(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(14)
        assert await ask(engine, talk) == await ask(engine, talk)
        assert engine.stats is not None
        assert engine.stats.prefix_bytes == 0

    with_engine(model, test, memory_limit=0)


def test_what_was_read_under_one_salt_is_found_under_that_one_only_in_memory_and_on_disk(
    model: Model, tmp_path: Path
) -> None:
    talk = new_talk(7)
    reference = model.greedy(talk.asked()[0])

    async def cached(engine: EngineClient, salt: str) -> int:
        answer, cached = await ask(engine, talk, salt)
        assert answer == reference
        return cached

    async def run() -> None:
        async with engine_for(model.folder, tmp_path) as engine:
            assert await cached(engine, "alice") == 0
            assert await cached(engine, "bob") == 0
            assert await cached(engine, "") == 0
            assert await cached(engine, "alice") > 0
        async with engine_for(model.folder, tmp_path) as restarted:
            assert await cached(restarted, "carol") == 0
            assert await cached(restarted, "alice") > 0
            assert await cached(restarted, "bob") > 0

    asyncio.run(run())


def test_two_that_ask_the_same_at_once_under_different_salts_do_not_read_for_each_other(model: Model) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(8)
        both = await asyncio.gather(ask(engine, talk, "alice"), ask(engine, talk, "bob"))
        assert [cached for _, cached in both] == [0, 0]

    with_engine(model, test)


@pytest.mark.parametrize(("prefill_rate", "restored"), [(1.0, 60), (1e12, 0)])
def test_the_disk_is_read_only_when_that_is_faster_than_prefill(
    sliding: Model, tmp_path: Path, prefill_rate: float, restored: int
) -> None:
    tokens = list(range(100, 160))
    layers = make_prompt_cache(sliding.raw)
    sliding.raw(mx.array([tokens]), cache=layers)
    written = PrefixCache(10**9, DiskTier(tmp_path, "model", 10**9), trimmable=False)
    written.store(tokens, layers, [], "user")
    assert written.write_one()
    assert not written.write_one(), "all is written"
    disk = DiskTier(tmp_path, "model", 10**9)
    found = PrefixCache(10**9, disk, trimmable=False, prefill_rate=lambda: prefill_rate).find([*tokens, 1, 2])
    assert (found.length, found.shared) == (restored, 60)


def test_the_log_says_where_a_prompt_leaves_the_most_similar_earlier_one(sliding: Model, tmp_path: Path) -> None:
    with serving(tmp_path, sliding.folder) as server:
        for question in ("What is the answer?", "What is the capital?"):
            server.chat(
                messages=[{"role": "system", "content": "You are " * 30}, {"role": "user", "content": question}]
            )
        assert re.search(
            r"prompt shares first \d+ of \d+ tokens with an earlier one, reuses \d+", server.log.read_text()
        )
