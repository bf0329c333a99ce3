"""Thoughts, what waits for their end, and their budget: the real engine process with a tiny real model."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.protocol import Grammar, Thought
from tests.support.steered import JSON, SCHEMA, Asked, Run, request
from tests.support.tiny_model import BOS_ID, END, END_ID, START, START_ID


def thought(tokenizer: ChatTokenizer, **fields: Any) -> Thought:
    """Here a thought begins with <|im_start|> and ends with <|im_end|>, which ends no answer in these tests."""
    closing = [*tokenizer.encode(" so.", False), END_ID]
    return Thought(begin=START, end=END, closing=closing, **fields)


def test_a_grammar_waits_for_the_end_of_an_open_thought(
    run: Run, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    async def test(ask: Asked) -> None:
        fields: dict[str, Any] = {"thought": thought(tokenizer, open=True), "stop_tokens": [BOS_ID]}
        eager = {END_ID: 44.0, BOS_ID: 60.0}
        for answer in await ask(*(request(JSON, seed=n, logit_bias=eager, **fields) for n in range(3))):
            thinking, _, text = answer.text(vocabulary).partition(END)
            assert thinking
            assert answer.reason == "stop"
            jsonschema.validate(json.loads(text), SCHEMA)

    run(test)


def test_a_held_answer_may_begin_with_a_thought_or_not(
    run: Run, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    async def test(ask: Asked) -> None:
        fields: dict[str, Any] = {"thought": thought(tokenizer, max_tokens=10), "stop_tokens": [BOS_ID]}
        [thinks] = await ask(request(JSON, logit_bias={START_ID: 50.0}, **fields))
        [plain] = await ask(request(JSON, logit_bias={START_ID: -50.0}, **fields))
        assert thinks.tokens[0] == START_ID
        assert plain.text(vocabulary).startswith("{")
        for text in (thinks.text(vocabulary).partition(END)[2], plain.text(vocabulary)):
            jsonschema.validate(json.loads(text), SCHEMA)

    run(test)


def test_what_begins_a_thought_in_several_tokens_does_not_end_it(
    run: Run, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    begin = f"{START}analysis\n"
    assert len(tokenizer.encode(begin, False)) > 2

    async def test(ask: Asked) -> None:
        # At the first token only what begins the thought or the JSON may be drawn, and then what ends it.
        eager = {START_ID: 50.0, END_ID: 90.0}
        [answer] = await ask(
            request(JSON, thought=Thought(begin=begin, end=END), stop_tokens=[BOS_ID], logit_bias=eager)
        )
        thinking, _, text = answer.text(vocabulary).partition(END)
        assert thinking == begin
        jsonschema.validate(json.loads(text), SCHEMA)

    run(test)


@pytest.mark.parametrize("grammar", [None, JSON])
@pytest.mark.parametrize("budget", [0, 1, 20])
def test_a_thought_beyond_its_budget_is_closed_in_the_models_own_words(
    run: Run, tokenizer: ChatTokenizer, vocabulary: Vocabulary, budget: int, grammar: Grammar | None
) -> None:
    async def test(ask: Asked) -> None:
        row = request(
            grammar, thought=thought(tokenizer, open=True, max_tokens=budget), stop_tokens=[BOS_ID], max_tokens=300
        )
        [answer] = await ask(row)
        thinking, _, text = answer.text(vocabulary).partition(END)
        assert thinking.endswith(" so.")
        assert answer.tokens.index(END_ID) == budget + len(tokenizer.encode(" so.", False))
        assert text
        if grammar is not None:
            jsonschema.validate(json.loads(text), SCHEMA)

    run(test)


def test_a_thought_that_ends_in_time_is_left_alone(run: Run, tokenizer: ChatTokenizer) -> None:
    async def test(ask: Asked) -> None:
        fields: dict[str, Any] = {"stop_tokens": [BOS_ID], "logit_bias": {END_ID: 46.0}, "max_tokens": 60}
        [free] = await ask(request(**fields))
        assert END_ID in free.tokens[:40]
        [bounded] = await ask(request(thought=thought(tokenizer, open=True, max_tokens=41), **fields))
        assert bounded.tokens == free.tokens

    run(test)
