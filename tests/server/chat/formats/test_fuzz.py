"""Transcripts cut and mutated at random: no text is lost, nothing fails, and no call is passed on half."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest

from tests.support.transcripts import Transcript
from tests.support.transcripts.every import TRANSCRIPTS
from tests.support.wire import TOOLS, Answer, read, split, tokens, vocabulary


def _mutated(rng: random.Random, text: str, others: list[str]) -> str:
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(6):
            case 0:
                text = text[:at] + text[at + rng.randrange(1, 12) :]
            case 1:
                text = (
                    text[:at]
                    + rng.choice(["{", "}", '"', "<", ">", ",", ":", "\\", "\n", "]", "x y", "\\u12"])
                    + text[at:]
                )
            case 2:
                text = text[:at] + rng.choice(others) + text[at:]
            case 3:
                text = text[:at]
            case 4:
                end = at + rng.randrange(1, 30)
                text = text[:end] + text[at:end] + text[end:]
            case 5:
                other = rng.choice(others)
                text = text[:at] + other[rng.randrange(len(other) + 1) :]
    return text


def _check(transcript: Transcript, rng: random.Random, cut: bool) -> None:
    same = [other.text for other in TRANSCRIPTS if other.wire_format == transcript.wire_format]
    text = _mutated(rng, transcript.text, [*transcript.markers, *same] or ["x"])
    spelled = rng.random() < 0.3
    markers = () if spelled else transcript.markers
    known = vocabulary(markers, transcript.hidden)
    pieces = tokens(text, known, markers)
    tools = TOOLS if rng.random() < 0.9 else ()
    answers: list[Answer] = []
    for size in (10_000, rng.randrange(1, 9)):
        cuts = split(pieces, lambda whole, size=size: [whole[at : at + size] for at in range(0, len(whole), size)])
        answers.append(read(transcript.wire_format, cuts, known, tools, prompt_tail=transcript.prompt_tail, cut=cut))
    assert answers[0].whole == answers[1].whole, text
    _none_is_half(answers[0], cut, text)
    _nothing_is_lost(transcript, text, answers[0])
    # A grammar that holds calls makes no such text; all the same, what is passed on is whole.
    held = read(transcript.wire_format, pieces, known, tools, prompt_tail=transcript.prompt_tail, held=True, cut=cut)
    _none_is_half(held, cut, text)


def _none_is_half(answer: Answer, cut: bool, text: str) -> None:
    names = {tool.name for tool in TOOLS}
    for index, ((name, arguments), ended) in enumerate(zip(answer.calls, answer.ended, strict=True)):
        assert name in names, text
        if ended:
            assert isinstance(json.loads(arguments), dict), text
        else:
            assert cut and index == len(answer.calls) - 1, text


# What a header says is no text.
_HEADERS = {"gemma4": "thought", "harmony": "assistant|analysis|commentary|final|to=|functions|json|code"}


def _nothing_is_lost(transcript: Transcript, text: str, answer: Answer) -> None:
    """Where nothing was read as a call, every letter is in the text or the reasoning."""
    if answer.calls:
        return
    markers = {*transcript.markers, "<think>", "</think>", "<tool_call>", "</tool_call>", "[THINK]", "[/THINK]"}
    # Taking one marker out of another may leave a third.
    for marker in sorted(markers, key=len, reverse=True) * 2:
        text = text.replace(marker, "")
    letters = Counter(character for character in text if character.isalnum())
    kept = Counter(answer.reasoning + answer.text)
    header = "".join(re.findall(_HEADERS.get(transcript.wire_format, "(?!)"), text))
    assert letters - kept <= Counter(header), (text, answer)


def _run(cases: int, seed: str) -> None:
    rng = random.Random(seed)
    for _ in range(cases):
        _check(rng.choice(TRANSCRIPTS), rng, cut=rng.random() < 0.3)


def test_two_thousand_mutations() -> None:
    _run(2_000, "fast")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_hundred_thousand_mutations(seed: int) -> None:
    _run(10_000, f"slow {seed}")
