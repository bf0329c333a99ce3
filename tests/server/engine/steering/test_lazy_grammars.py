"""Grammars that wait for an opening: the real engine process with a tiny real model."""

from __future__ import annotations

import re

from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.protocol import Grammar
from tests.support.steered import Asked, Run, request
from tests.support.tiny_model import START, START_ID


def test_a_lazy_grammar_takes_over_at_its_opening_and_lets_go_when_it_is_complete(
    run: Run, vocabulary: Vocabulary
) -> None:
    """The marker is one token here; it is drawn now and then, since a bias makes it likely."""
    grammar = Grammar(text=f'start: <[{START_ID}]> "[" /[a-z]{{3}}/ "]"', opening=[START])

    async def test(ask: Asked) -> None:
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
    run: Run, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    grammar = Grammar(text='start: "<c>" "[" /[a-z]{3}/ "]"', opening=["<c>"])
    rows = [
        request(grammar, seed=n, allowed=tokenizer.encode("<c>[]", False), temperature=50.0, max_tokens=300)
        for n in range(6)
    ]

    async def test(ask: Asked) -> None:
        texts = [answer.text(vocabulary) for answer in await ask(*rows)]
        found = [text for answer in texts for text in answer.split("<c>")[1:-1]]
        assert found
        assert [text for text in found if not text.startswith("[ccc]")] == []

    run(test)


def test_what_one_token_writes_beyond_an_opening_belongs_to_the_grammar(
    run: Run, tokenizer: ChatTokenizer, vocabulary: Vocabulary
) -> None:
    """The token " the" completes the opening " t" and runs beyond it; " to" does too, and is no beginning of a call."""
    [the], [to] = tokenizer.encode(" the", False), tokenizer.encode(" to", False)
    grammar = Grammar(text='start: " t" "he" "!"', opening=[" t"])

    async def test(ask: Asked) -> None:
        rows = [request(grammar, seed=n, logit_bias={the: 14.0, to: 16.0}, max_tokens=40) for n in range(4)]
        texts = [answer.text(vocabulary) for answer in await ask(*rows)]
        assert any(" the!" in text for text in texts)
        assert [text for text in texts if re.search(" t(?!he!)", text[:-4])] == []

    run(test)


def test_a_lazy_grammar_that_may_come_once_ends_the_answer(run: Run, vocabulary: Vocabulary) -> None:
    grammar = Grammar(text=f'start: <[{START_ID}]> "[" /[a-z]{{3}}/ "]"', opening=[START], once=True)

    async def test(ask: Asked) -> None:
        [answer] = await ask(request(grammar, logit_bias={START_ID: 44.0}))
        assert re.fullmatch(r".*\[[a-z]{3}\]", answer.text(vocabulary), re.DOTALL)
        assert (answer.tokens.count(START_ID), answer.reason) == (1, "stop")

    run(test)
