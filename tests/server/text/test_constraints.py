"""What a request's tools and shape make of the text process: grammars, banned words, and who waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from server.chat.conversation import Conversation
from server.chat.grammar.constraint import Constraint
from server.chat.shapes import JsonSchema
from server.chat.tools import Tool
from server.errors import InvalidRequest
from server.settings.types import LimitSettings
from server.text import client
from server.text.client import TextProcess
from server.text.protocol import Constrain
from tests.support.text_process import GOOD, children, model, opened, run


def schema_of(text: TextProcess, schema: dict[str, Any]) -> Coroutine[Any, Any, Constraint]:
    return text.constrain(Constrain(shape=JsonSchema(schema)), "a")


def test_a_grammar_is_made_once_for_those_that_ask_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            before = children()
            first = await schema_of(text, {"type": "integer"})
            assert first.grammar is not None
            assert len(children() - before) == 1, "a process of its own"
            await text.rest()
            assert await schema_of(text, {"type": "integer"}) == first
            assert not children() - before
            assert await schema_of(text, {"type": "string"}) != first
            with pytest.raises(InvalidRequest, match='"if" at /'):
                await schema_of(text, {"if": {}})

    run(main)


def test_the_process_for_grammars_does_not_end_while_somebody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_IDLE_S", 0)

    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            before, seen = children(), set[int]()

            async def ask(value: int) -> None:
                await schema_of(text, {"const": value})
                seen.update(children() - before)

            await asyncio.gather(*map(ask, range(3)))
            assert len(seen) == 1

    run(main)


def test_a_schema_may_hold_numbers_of_any_size(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            schema = {"type": "number", "description": "x", "default": -(10**400)}
            assert (await schema_of(text, schema)).grammar is not None
            tools = (Tool("count", parameters=schema),)
            assert (await text.encode_prompt(Conversation(GOOD.messages, tools=tools), "a")).ids

    run(main)


def test_a_grammar_that_takes_too_long_costs_its_own_request_and_nobody_elses(tmp_path: Path) -> None:
    """That of strings that all of these match takes minutes."""
    patterns = [{"type": "string", "pattern": f"a.{{{i}}}b"} for i in range(1, 60)]

    async def main() -> None:
        async with opened(model(tmp_path), LimitSettings(grammar_timeout_s=0.8)) as text:
            bad = asyncio.create_task(schema_of(text, {"allOf": patterns}))
            for _ in range(5):
                assert (await text.encode_prompt(GOOD, "alice")).ids
            assert not bad.done()
            with pytest.raises(InvalidRequest, match=r"grammar .* took longer than 0\.8 s"):
                await bad
            assert (await schema_of(text, {"type": "integer"})).grammar is not None

    run(main)


def test_bad_words_are_banned_at_the_start_of_a_text_and_within(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(model(tmp_path)) as text:
            made = await text.constrain(Constrain(bad_words=("the", "zebra"), closing=" so."), "a")
            assert made.grammar is None
            spelled = [await text.decode(tokens, "a") for tokens in made.banned]
            assert spelled == ["the", " the", "zebra", " zebra"]
            assert await text.decode(made.closing, "a") == " so."

    run(main)
