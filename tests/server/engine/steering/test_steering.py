"""Answers under a grammar and rules on tokens: the real engine process with a tiny real model."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import jsonschema
import pytest

from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine.steering.grammar import Grammars
from server.engine_client.protocol import Grammar
from server.errors import InvalidRequest
from tests.support.steered import JSON, SCHEMA, Asked, Run, request
from tests.support.tiny_model import END_ID


def test_answers_satisfy_their_schema_whatever_is_drawn(run: Run, vocabulary: Vocabulary) -> None:
    async def test(ask: Asked) -> None:
        for answer in await ask(*(request(JSON, seed=seed, temperature=1.5) for seed in range(8))):
            assert answer.reason == "stop"
            jsonschema.validate(json.loads(answer.text(vocabulary)), SCHEMA)

    run(test)


def test_rows_with_and_without_a_grammar_answer_as_they_do_alone(run: Run) -> None:
    rows = [
        request(JSON, seed=3),
        request(seed=4, max_tokens=30),
        request(Grammar(text='start: "yes" | "no" | "perhaps"'), seed=5, temperature=0),
        request(seed=6, temperature=0, max_tokens=22, logit_bias={77: 3.0}),
        request(Grammar(text="start: /[a-z ]{5,45}/"), seed=7, top_k=9),
    ]

    async def test(ask: Asked) -> None:
        alone = [(await ask(row))[0].tokens for row in rows]
        for order in (rows, rows[::-1], rows[2:] + rows[:2]):
            together = [answer.tokens for answer in await ask(*order)]
            assert together == [alone[rows.index(row)] for row in order]

    run(test)


def test_a_cut_answer_is_cut_by_length_and_a_whole_one_at_its_last_token_is_not(
    run: Run, vocabulary: Vocabulary
) -> None:
    grammar = Grammar(text='start: "abcdef"')

    async def test(ask: Asked) -> None:
        [whole] = await ask(request(grammar))
        assert (whole.text(vocabulary), whole.reason) == ("abcdef", "stop")
        [cut, just] = await ask(
            request(grammar, max_tokens=len(whole.tokens) - 1), request(grammar, max_tokens=len(whole.tokens))
        )
        assert (cut.reason, just.reason) == ("length", "stop")
        assert just.text(vocabulary) == "abcdef"

    run(test)


def test_the_end_comes_only_where_the_grammar_accepts_and_not_before_min_tokens(
    run: Run, vocabulary: Vocabulary
) -> None:
    eager = {END_ID: 100.0}

    async def test(ask: Asked) -> None:
        grammar = Grammar(text="start: /ab(cd)*/")
        [soon, later, never] = await ask(
            request(grammar, logit_bias=eager),
            request(grammar, logit_bias=eager, min_tokens=9),
            request(grammar, logit_bias=eager, stop_tokens=[], max_tokens=30),
        )
        assert (soon.text(vocabulary), soon.reason) == ("ab", "stop")
        assert re.fullmatch("ab(cd)*", later.text(vocabulary))
        assert len(later.tokens) >= 9
        assert (len(never.tokens), never.reason) == (30, "length")
        [free] = await ask(request(logit_bias=eager, min_tokens=5))
        assert (len(free.tokens), free.reason) == (5, "stop")

    run(test)


def test_bias_allowed_and_banned_tokens_work_within_a_grammar(run: Run, tokenizer: ChatTokenizer) -> None:
    [yes], [no] = tokenizer.encode("y", False), tokenizer.encode("n", False)
    grammar = Grammar(text='start: "y" | "n"')

    async def test(ask: Asked) -> None:
        biased, allowed, banned = await ask(
            request(grammar, logit_bias={no: 100.0}, temperature=0),
            request(grammar, allowed=[no, END_ID]),
            request(grammar, banned=[[yes]]),
        )
        assert [answer.tokens for answer in (biased, allowed, banned)] == [[no]] * 3
        with pytest.raises(InvalidRequest, match="exclude each other"):
            await ask(request(grammar, allowed=[65]))

    run(test)


def test_a_banned_sequence_is_not_completed_and_its_beginning_is_free(run: Run) -> None:
    async def test(ask: Asked) -> None:
        [free] = await ask(request(temperature=0, max_tokens=20))
        banned = free.tokens[4:7]
        [made] = await ask(request(temperature=0, max_tokens=20, banned=[banned]))
        assert made.tokens[:6] == free.tokens[:6]
        assert all(made.tokens[i : i + 3] != banned for i in range(18))

    run(test)


def test_only_allowed_tokens_are_drawn(run: Run) -> None:
    async def test(ask: Asked) -> None:
        [made] = await ask(request(allowed=[70, 71, 72], max_tokens=50, temperature=3.0))
        assert set(made.tokens) == {70, 71, 72}

    run(test)


def test_logprobs_are_those_of_what_may_be_drawn(run: Run, tokenizer: ChatTokenizer) -> None:
    """As at vLLM: of the distribution after the grammar."""
    ids = [tokenizer.encode(letter, False)[0] for letter in "yn"]

    async def test(ask: Asked) -> None:
        [made] = await ask(request(Grammar(text='start: "y" | "n"'), top_logprobs=3))
        assert {token for token, _ in made.best[:2]} == set(ids)
        assert made.best[2][1] == -9999.0

    run(test)


def test_a_bad_grammar_costs_its_own_request_only(run: Run) -> None:
    async def test(ask: Asked) -> None:
        free = request(seed=4, max_tokens=60)
        [alone] = await ask(free)
        bad = [Grammar(text="start: nowhere"), Grammar(text='start: %json {"type": "strange"}')]
        outcomes = await asyncio.gather(
            ask(free), *(ask(request(grammar)) for grammar in bad), ask(request(JSON)), return_exceptions=True
        )
        assert [type(outcome).__name__ for outcome in outcomes] == [
            "list", "InvalidRequest", "InvalidRequest", "list",
        ]  # fmt: skip
        assert isinstance(outcomes[0], list)
        assert outcomes[0][0].tokens == alone.tokens
        assert "strange" in str(outcomes[2])

    run(test)


def test_a_grammar_that_becomes_too_much_half_way_ends_its_own_answer_only(run: Run) -> None:
    grammar = Grammar(text="start: /(a{1,1000}){1,1000}/")

    async def test(ask: Asked) -> None:
        free = request(seed=4, max_tokens=200)
        [alone] = await ask(free)
        bad, good = await asyncio.gather(ask(request(grammar, max_tokens=1000)), ask(free), return_exceptions=True)
        assert isinstance(bad, InvalidRequest)
        assert "cannot go on" in bad.message
        assert isinstance(good, list)
        assert good[0].tokens == alone.tokens

    run(test)


@pytest.mark.parametrize(
    "text",
    [
        "start: t\nt: x y | y x | x t y\nx: /[a-z]/+\ny: /[a-z]/+",
        "start: e\ne: e e | e e e | /[a-z ]/ | /[b-z ]/ | /[c-z]/",
    ],
    ids=["ambiguous repetition", "ambiguous sequence"],
)
def test_a_grammar_that_is_slow_to_follow_ends_its_own_answer_only(run: Run, text: str) -> None:
    async def test(ask: Asked) -> None:
        free, held = request(seed=4, max_tokens=60), request(JSON, seed=2)
        [alone], [shaped] = await ask(free), await ask(held)
        slow = request(Grammar(text=text), max_tokens=2000)
        bad, *good = await asyncio.gather(ask(slow), ask(free), ask(held), return_exceptions=True)
        assert isinstance(bad, InvalidRequest)
        assert "cannot go on by its grammar" in bad.message
        assert [[answer.tokens for answer in made] for made in good if isinstance(made, list)] == [
            [alone.tokens], [shaped.tokens],
        ]  # fmt: skip

    run(test)


def test_an_answer_pays_for_slow_masks_out_of_a_bounded_time(vocabulary: Vocabulary) -> None:
    steering = Grammars(vocabulary.vocab_size).steering(request(allowed=[1, 2]))
    assert steering is not None
    for _ in range(1000):
        steering.pay(0.019)
    assert (steering.failed, steering.slow) == (None, False)
    for _ in range(12):
        steering.pay(0.06)
    assert steering.slow and steering.failed is None
    steering.pay(0.06)
    assert "takes too long" in str(steering.failed)


def test_a_cancelled_answer_leaves_the_others_as_they_were(run: Run, vocabulary: Vocabulary) -> None:
    async def test(ask: Asked) -> None:
        [alone] = await ask(request(JSON, seed=2))
        endless = Grammar(text="start: /[a-z]+/")
        streams = [ask.engine.generate([request(endless, max_tokens=2000)], vocabulary.token_table) for _ in range(3)]
        # One while it decodes, one at once.
        await anext(streams[0])
        asking = asyncio.ensure_future(ask(request(JSON, seed=2)))
        for stream in streams:
            stream.close()
        assert (await asking)[0].tokens == alone.tokens
        assert (await ask(request(JSON, seed=2)))[0].tokens == alone.tokens

    run(test)


def test_xtc_takes_the_likeliest_away_as_often_as_it_is_told(run: Run) -> None:
    fields: dict[str, Any] = {"allowed": [70, 71], "temperature": 50.0, "max_tokens": 60, "top_logprobs": 1}

    async def test(ask: Asked) -> None:
        for probability, least, most in ((0.0, 20, 40), (0.5, 35, 55), (1.0, 60, 60)):
            row = request(xtc_probability=probability, xtc_threshold=0.1, **fields)
            [made] = await ask(row)
            taken = sum(token != best for token, (best, _) in zip(made.tokens, made.best, strict=True))
            assert least <= taken <= most, probability
            crowded = await ask(request(seed=9, max_tokens=60), row, request(JSON))
            assert crowded[1].tokens == made.tokens

    run(test)
