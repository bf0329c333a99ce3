"""Prefix reuse through the real engine process: never another answer than a cold start gives, whatever happened before.

The reference is the raw model without any cache.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.engine_client.client import EngineClient
from server.engine_client.protocol import Prefilled, Tokens
from tests.support.engines import RunWith, kept_engine
from tests.support.running import serving
from tests.support.sliding_model import WINDOW
from tests.support.talks import Model, Talk, ask, engine_for, generate, new_talk, talk_settings, with_engine


@pytest.fixture(scope="module")
def run(model: Model) -> Iterator[RunWith]:
    """Calls a test with an engine that many share: each tells it what no other does."""
    with kept_engine(model.folder, talk_settings()) as run:
        yield run


def test_each_turn_reads_only_what_is_new_and_answers_as_a_cold_start_would(model: Model, run: RunWith) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(1)
        expected_cached = 0
        for _ in range(4):
            answer, cached = await ask(engine, talk)
            assert answer == model.greedy(talk.asked()[0])
            assert cached >= expected_cached
            expected_cached = len(talk.tokens)
            talk.say("assistant", answer).say("user", 20)

    run(test)


def test_a_tool_loop_reuses_up_to_the_last_result_though_the_reply_opens_with_what_history_drops(
    model: Model, run: RunWith
) -> None:
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

    run(test)


def test_a_sibling_question_reuses_the_system_prompt(model: Model, run: RunWith) -> None:
    async def test(engine: EngineClient) -> None:
        system = [random.Random(9).randrange(10, 448) for _ in range(100)]
        for seed in range(3):
            talk = Talk(random.Random(seed)).say("system", system).say("user", 30)
            answer, cached = await ask(engine, talk)
            assert answer == model.greedy(talk.asked()[0])
            assert cached >= (100 if seed else 0)

    run(test)


def test_two_conversations_at_once_do_not_mix(model: Model, run: RunWith) -> None:
    async def test(engine: EngineClient) -> None:
        talks = [new_talk(3), new_talk(4)]
        for _ in range(3):
            answers = await asyncio.gather(*(ask(engine, talk) for talk in talks))
            for talk, (answer, _) in zip(talks, answers, strict=True):
                assert answer == model.greedy(talk.asked()[0])
                talk.say("assistant", answer).say("user", 15)

    run(test)


def test_a_cancelled_prefill_keeps_what_it_read(model: Model, run: RunWith) -> None:
    async def test(engine: EngineClient) -> None:
        talk = Talk(random.Random(5)).say("system", 50).say("user", 800)
        stream = engine.generate([generate(*talk.asked())])
        async for _, event in stream:
            if isinstance(event, Prefilled) and event.done > 400:
                break
        stream.close()
        answer, cached = await ask(engine, talk)
        # Of the pass that was under way nothing is kept.
        assert cached > 400 - 16
        assert answer == model.greedy(talk.asked()[0])

    run(test)


def test_an_edited_message_in_the_middle_is_read_anew_from_there(model: Model, run: RunWith) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(6).say("assistant", 20).say("user", 40)
        await ask(engine, talk)
        edited = Talk(random.Random(7)).say("system", talk.tokens[:50])
        edited.say("user", [*talk.tokens[50:80], 11, *talk.tokens[81:110]])
        edited.say("assistant", talk.tokens[110:130]).say("user", talk.tokens[130:])
        answer, cached = await ask(engine, edited)
        assert answer == model.greedy(edited.asked()[0])
        assert 50 <= cached <= 80

    run(test)


def test_choices_of_one_request_read_their_prompt_once(model: Model, run: RunWith) -> None:
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

    run(test)


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
        # One that has measured both may find that reading again is quicker than the disk; after a start it has not.
        for salt in ("alice", "bob"):
            async with engine_for(model.folder, tmp_path) as restarted:
                assert await cached(restarted, salt) > 0
                assert await cached(restarted, f"not {salt}") == 0

    asyncio.run(run())


def test_two_that_ask_the_same_at_once_under_different_salts_do_not_read_for_each_other(
    model: Model, run: RunWith
) -> None:
    async def test(engine: EngineClient) -> None:
        talk = new_talk(15)
        both = await asyncio.gather(ask(engine, talk, "alice"), ask(engine, talk, "bob"))
        assert [cached for _, cached in both] == [0, 0]

    run(test)


def test_the_log_says_where_a_prompt_leaves_the_most_similar_earlier_one(sliding: Model, tmp_path: Path) -> None:
    with serving(tmp_path, sliding.folder) as server:
        for question in ("What is the answer?", "What is the capital?"):
            server.chat(
                messages=[{"role": "system", "content": "You are " * 30}, {"role": "user", "content": question}]
            )
        assert re.search(
            r"prompt shares first \d+ of \d+ tokens with an earlier one, reuses \d+", server.log.read_text()
        )
