"""Answers under a grammar, a thought's budget and rules on tokens: the real engine process with a tiny real model."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ByteSize

from server.chat.grammar import lark
from server.chat.tokenizer import ChatTokenizer
from server.chat.vocabulary import Vocabulary
from server.engine_client.client import EngineClient
from server.engine_client.protocol import Finished, Generate, Grammar, Sampling, Thought, Tokens
from server.engine_client.supervisor import Supervisor
from server.errors import InvalidRequest
from server.settings.types import CacheSettings, EngineSettings, Settings
from tests.support.tiny_model import BOS_ID, END, END_ID, START, START_ID, write_tiny_model
from tests.support.vocabulary import vocabulary_of

PROMPT = [70, 80, 90, 100, 110]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "people": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["city", "size", "people"],
    "additionalProperties": False,
}
JSON = Grammar(text=f"start: {lark.json_schema(SCHEMA)}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("steering") / "model")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> ChatTokenizer:
    return ChatTokenizer.load(model)


@pytest.fixture(scope="module")
def vocabulary(tokenizer: ChatTokenizer) -> Vocabulary:
    return vocabulary_of(tokenizer)


class Answer:
    """What the engine made of one request."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.reason = ""
        self.best: list[tuple[int, float]] = []

    def text(self, vocabulary: Vocabulary) -> str:
        return b"".join(vocabulary.token_bytes(token) for token in self.tokens).decode("utf-8", "replace")


Ask = Callable[..., Coroutine[Any, Any, list[Answer]]]


@pytest.fixture
def run(model: Path, vocabulary: Vocabulary) -> Iterator[Callable[[Callable[[Ask, EngineClient], Any]], None]]:
    """Calls its argument with a way to ask a running engine, and the engine."""

    def runner(test: Callable[[Ask, EngineClient], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            cache = CacheSettings(disk_limit=ByteSize(0))
            supervisor = Supervisor(Settings(engine=EngineSettings(max_concurrent=8), cache=cache))
            try:
                engine = await supervisor.start(model)

                async def ask(*requests: Generate) -> list[Answer]:
                    answers = [Answer() for _ in requests]
                    with contextlib.closing(engine.generate(requests, vocabulary.token_table)) as stream:
                        async for index, event in stream:
                            if isinstance(event, Tokens):
                                answers[index].tokens += event.tokens
                                answers[index].best += [best for entry in event.logprobs for best in entry.top]
                            elif isinstance(event, Finished):
                                answers[index].reason = event.reason
                    return answers

                await test(ask, engine)
            finally:
                await supervisor.stop()

        asyncio.run(main())

    yield runner


def request(grammar: Grammar | None = None, *, seed: int = 1, **fields: Any) -> Generate:
    names = {"allowed", "banned", "logit_bias", "temperature", "xtc_probability", "xtc_threshold", "top_k"}
    sampling = {name: fields.pop(name) for name in names & fields.keys()}
    defaults: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 400, "stop_tokens": [END_ID, BOS_ID]}
    return Generate(id=0, grammar=grammar, sampling=Sampling(seed=seed, **sampling), **(defaults | fields))


def test_answers_satisfy_their_schema_whatever_is_drawn(run: Any, vocabulary: Vocabulary) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
        for answer in await ask(*(request(JSON, seed=seed, temperature=1.5) for seed in range(8))):
            assert answer.reason == "stop"
            jsonschema.validate(json.loads(answer.text(vocabulary)), SCHEMA)

    run(test)


def test_rows_with_and_without_a_grammar_answer_as_they_do_alone(run: Any) -> None:
    rows = [
        request(JSON, seed=3),
        request(seed=4, max_tokens=60),
        request(Grammar(text='start: "yes" | "no" | "perhaps"'), seed=5, temperature=0),
        request(seed=6, temperature=0, max_tokens=45, logit_bias={77: 3.0}),
        request(Grammar(text="start: /[a-z ]{5,90}/"), seed=7, top_k=9),
    ]

    async def test(ask: Ask, engine: EngineClient) -> None:
        alone = [(await ask(row))[0].tokens for row in rows]
        for order in (rows, rows[::-1], rows[2:] + rows[:2]):
            together = [answer.tokens for answer in await ask(*order)]
            assert together == [alone[rows.index(row)] for row in order]

    run(test)


def test_a_cut_answer_is_cut_by_length_and_a_whole_one_at_its_last_token_is_not(
    run: Any, vocabulary: Vocabulary
) -> None:
    grammar = Grammar(text='start: "abcdef"')

    async def test(ask: Ask, engine: EngineClient) -> None:
        [whole] = await ask(request(grammar))
        assert (whole.text(vocabulary), whole.reason) == ("abcdef", "stop")
        [cut, just] = await ask(
            request(grammar, max_tokens=len(whole.tokens) - 1), request(grammar, max_tokens=len(whole.tokens))
        )
        assert (cut.reason, just.reason) == ("length", "stop")
        assert just.text(vocabulary) == "abcdef"

    run(test)


def test_the_end_comes_only_where_the_grammar_accepts_and_not_before_min_tokens(
    run: Any, vocabulary: Vocabulary
) -> None:
    eager = {END_ID: 100.0}

    async def test(ask: Ask, engine: EngineClient) -> None:
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


def test_bias_allowed_and_banned_tokens_work_within_a_grammar(run: Any, tokenizer: ChatTokenizer) -> None:
    [yes], [no] = tokenizer.encode("y", False), tokenizer.encode("n", False)
    grammar = Grammar(text='start: "y" | "n"')

    async def test(ask: Ask, engine: EngineClient) -> None:
        biased, allowed, banned = await ask(
            request(grammar, logit_bias={no: 100.0}, temperature=0),
            request(grammar, allowed=[no, END_ID]),
            request(grammar, banned=[[yes]]),
        )
        assert [answer.tokens for answer in (biased, allowed, banned)] == [[no]] * 3
        with pytest.raises(InvalidRequest, match="exclude each other"):
            await ask(request(grammar, allowed=[65]))

    run(test)


def test_a_banned_sequence_is_not_completed_and_its_beginning_is_free(run: Any) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
        [free] = await ask(request(temperature=0, max_tokens=20))
        banned = free.tokens[4:7]
        [made] = await ask(request(temperature=0, max_tokens=20, banned=[banned]))
        assert made.tokens[:6] == free.tokens[:6]
        assert all(made.tokens[i : i + 3] != banned for i in range(18))

    run(test)


def test_only_allowed_tokens_are_drawn(run: Any) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
        [made] = await ask(request(allowed=[70, 71, 72], max_tokens=50, temperature=3.0))
        assert set(made.tokens) == {70, 71, 72}

    run(test)


def test_logprobs_are_those_of_what_may_be_drawn(run: Any, tokenizer: ChatTokenizer) -> None:
    """As at vLLM: of the distribution after the grammar."""
    ids = [tokenizer.encode(letter, False)[0] for letter in "yn"]

    async def test(ask: Ask, engine: EngineClient) -> None:
        [made] = await ask(request(Grammar(text='start: "y" | "n"'), top_logprobs=3))
        assert {token for token, _ in made.best[:2]} == set(ids)
        assert made.best[2][1] == -9999.0

    run(test)


def test_a_bad_grammar_costs_its_own_request_only(run: Any) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
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


def test_a_grammar_that_becomes_too_much_half_way_ends_its_own_answer_only(run: Any) -> None:
    grammar = Grammar(text="start: /(a{1,1000}){1,1000}/")

    async def test(ask: Ask, engine: EngineClient) -> None:
        free = request(seed=4, max_tokens=200)
        [alone] = await ask(free)
        bad, good = await asyncio.gather(ask(request(grammar, max_tokens=1000)), ask(free), return_exceptions=True)
        assert isinstance(bad, InvalidRequest)
        assert "cannot go on" in bad.message
        assert isinstance(good, list)
        assert good[0].tokens == alone.tokens

    run(test)


def test_a_cancelled_answer_leaves_the_others_as_they_were(run: Any, vocabulary: Vocabulary) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
        [alone] = await ask(request(JSON, seed=2))
        endless = Grammar(text="start: /[a-z]+/")
        streams = [engine.generate([request(endless, max_tokens=2000)], vocabulary.token_table) for _ in range(3)]
        # One while it decodes, one at once.
        await anext(streams[0])
        asking = asyncio.ensure_future(ask(request(JSON, seed=2)))
        for stream in streams:
            stream.close()
        assert (await asking)[0].tokens == alone.tokens
        assert (await ask(request(JSON, seed=2)))[0].tokens == alone.tokens

    run(test)


# ---- lazy grammars


def test_a_lazy_grammar_takes_over_at_its_opening_and_lets_go_when_it_is_complete(
    run: Any, vocabulary: Vocabulary
) -> None:
    """The marker is one token here; it is drawn now and then, since a bias makes it likely."""
    grammar = Grammar(text=f'start: <[{START_ID}]> "[" /[a-z]{{3}}/ "]"', opening=[START])

    async def test(ask: Ask, engine: EngineClient) -> None:
        answers = await ask(*(request(grammar, seed=n, logit_bias={START_ID: 44.0}, max_tokens=150) for n in range(4)))
        calls = 0
        for answer in answers:
            first, *others = answer.text(vocabulary).split(START)
            for text in others[:-1]:
                assert re.match(r"\[[a-z]{3}\]", text)
                calls += 1
            assert first or others
        assert calls > 3
        assert any(len(text) > 5 for answer in answers for text in answer.text(vocabulary).split(START)[1:]), (
            "the answer is free behind a call"
        )

    run(test)


def test_an_opening_of_several_tokens_is_found_across_them(
    run: Any, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    grammar = Grammar(text='start: "<c>" "[" /[a-z]{3}/ "]"', opening=["<c>"])
    rows = [
        request(grammar, seed=n, allowed=tokenizer.encode("<c>[]", False), temperature=50.0, max_tokens=300)
        for n in range(6)
    ]

    async def test(ask: Ask, engine: EngineClient) -> None:
        texts = [answer.text(vocabulary) for answer in await ask(*rows)]
        found = [text for answer in texts for text in answer.split("<c>")[1:-1]]
        assert found
        assert [text for text in found if not text.startswith("[ccc]")] == []

    run(test)


def test_what_one_token_writes_beyond_an_opening_belongs_to_the_grammar(
    run: Any, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    """The token " the" completes the opening " t" and runs beyond it; " to" does too, and is no beginning of a call."""
    [the], [to] = tokenizer.encode(" the", False), tokenizer.encode(" to", False)
    grammar = Grammar(text='start: " t" "he" "!"', opening=[" t"])

    async def test(ask: Ask, engine: EngineClient) -> None:
        rows = [request(grammar, seed=n, logit_bias={the: 14.0, to: 16.0}, max_tokens=40) for n in range(4)]
        texts = [answer.text(vocabulary) for answer in await ask(*rows)]
        assert any(" the!" in text for text in texts)
        assert [text for text in texts if re.search(" t(?!he!)", text[:-4])] == []

    run(test)


def test_a_lazy_grammar_that_may_come_once_ends_the_answer(run: Any, vocabulary: Vocabulary) -> None:
    grammar = Grammar(text=f'start: <[{START_ID}]> "[" /[a-z]{{3}}/ "]"', opening=[START], once=True)

    async def test(ask: Ask, engine: EngineClient) -> None:
        [answer] = await ask(request(grammar, logit_bias={START_ID: 44.0}))
        assert re.fullmatch(r".*\[[a-z]{3}\]", answer.text(vocabulary), re.DOTALL)
        assert (answer.tokens.count(START_ID), answer.reason) == (1, "stop")

    run(test)


# ---- thoughts


def thought(tokenizer: ChatTokenizer, **fields: Any) -> Thought:
    """Here a thought begins with <|im_start|> and ends with <|im_end|>, which ends no answer in these tests."""
    closing = [*tokenizer.encode(" so.", False), END_ID]
    return Thought(begin=START, end=END, closing=closing, **fields)


def test_a_grammar_waits_for_the_end_of_an_open_thought(
    run: Any, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
        fields: dict[str, Any] = {"thought": thought(tokenizer, open=True), "stop_tokens": [BOS_ID]}
        eager = {END_ID: 44.0, BOS_ID: 60.0}
        for answer in await ask(*(request(JSON, seed=n, logit_bias=eager, **fields) for n in range(3))):
            thinking, _, text = answer.text(vocabulary).partition(END)
            assert thinking
            assert answer.reason == "stop"
            jsonschema.validate(json.loads(text), SCHEMA)

    run(test)


def test_a_held_answer_may_begin_with_a_thought_or_not(
    run: Any, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
        fields: dict[str, Any] = {"thought": thought(tokenizer, max_tokens=10), "stop_tokens": [BOS_ID]}
        [thinks] = await ask(request(JSON, logit_bias={START_ID: 50.0}, **fields))
        [plain] = await ask(request(JSON, logit_bias={START_ID: -50.0}, **fields))
        assert thinks.tokens[0] == START_ID
        assert plain.text(vocabulary).startswith("{")
        for text in (thinks.text(vocabulary).partition(END)[2], plain.text(vocabulary)):
            jsonschema.validate(json.loads(text), SCHEMA)

    run(test)


@pytest.mark.parametrize("grammar", [None, JSON])
@pytest.mark.parametrize("budget", [0, 1, 20])
def test_a_thought_beyond_its_budget_is_closed_in_the_models_own_words(
    run: Any, tokenizer: ChatTokenizer, vocabulary: Vocabulary, budget: int, grammar: Grammar | None
) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
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


def test_a_thought_that_ends_in_time_is_left_alone(run: Any, tokenizer: ChatTokenizer) -> None:
    async def test(ask: Ask, engine: EngineClient) -> None:
        fields: dict[str, Any] = {"stop_tokens": [BOS_ID], "logit_bias": {END_ID: 46.0}, "max_tokens": 60}
        [free] = await ask(request(**fields))
        assert END_ID in free.tokens[:40]
        [bounded] = await ask(request(thought=thought(tokenizer, open=True, max_tokens=41), **fields))
        assert bounded.tokens == free.tokens

    run(test)


# ---- XTC


def test_xtc_takes_the_likeliest_away_as_often_as_it_is_told(run: Any) -> None:
    fields: dict[str, Any] = {"allowed": [70, 71], "temperature": 50.0, "max_tokens": 60, "top_logprobs": 1}

    async def test(ask: Ask, engine: EngineClient) -> None:
        for probability, least, most in ((0.0, 20, 40), (0.5, 35, 55), (1.0, 60, 60)):
            row = request(xtc_probability=probability, xtc_threshold=0.1, **fields)
            [made] = await ask(row)
            taken = sum(token != best for token, (best, _) in zip(made.tokens, made.best, strict=True))
            assert least <= taken <= most, probability
            crowded = await ask(request(seed=9), row, request(JSON))
            assert crowded[1].tokens == made.tokens

    run(test)
