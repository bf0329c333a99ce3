"""Golden transcripts of every wire format: what a client gets, however the answer is cut into tokens."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable

import pytest

from server.chat.formats.choose import FORMATS
from tests.support.transcripts import Transcript
from tests.support.transcripts.every import TRANSCRIPTS
from tests.support.wire import Answer, read, split, tokens, vocabulary

HELD = [transcript for transcript in TRANSCRIPTS if transcript.calls]


def _read(transcript: Transcript, *, cuts: str = "whole", spelled: bool = False, held: bool = False) -> Answer:
    """With the markers as tokens, or `spelled` in characters."""
    markers = () if spelled else transcript.markers
    known = vocabulary(markers, transcript.hidden)
    pieces = tokens(transcript.text, known, markers)
    if cuts == "characters":
        pieces = split(pieces, list)
    elif cuts != "whole":
        rng = random.Random(cuts)
        pieces = split(pieces, lambda text: _at_random(text, rng))
    return read(transcript.wire_format, pieces, known, prompt_tail=transcript.prompt_tail, held=held)


def _at_random(text: str, rng: random.Random) -> Iterable[str]:
    while text:
        size = rng.choice((1, 2, 3, 5, 8, 40))
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_a_transcript_is_read_as_its_model_means_it(transcript: Transcript) -> None:
    answer = _read(transcript)
    assert (answer.text, answer.reasoning) == (transcript.answer, transcript.reasoning)
    assert answer.called() == list(transcript.calls)


def test_every_format_has_transcripts() -> None:
    assert {transcript.wire_format for transcript in TRANSCRIPTS} == set(FORMATS)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_it_is_the_same_however_it_is_cut(transcript: Transcript) -> None:
    whole = _read(transcript).whole
    assert _read(transcript, cuts="characters").whole == whole
    for seed in range(20):
        assert _read(transcript, cuts=f"seed {seed}").whole == whole


# Words about a call end no thought: only a token does.
SPELLED = [transcript for transcript in TRANSCRIPTS if transcript.title != "a call that ends a thought"]


@pytest.mark.parametrize("transcript", SPELLED, ids=str)
def test_markers_that_are_no_tokens_are_found_in_the_characters(transcript: Transcript) -> None:
    whole = _read(transcript, spelled=True)
    assert (whole.text, whole.reasoning) == (transcript.answer, transcript.reasoning)
    assert whole.called() == list(transcript.calls)
    assert _read(transcript, spelled=True, cuts="characters").whole == whole.whole


@pytest.mark.parametrize("transcript", HELD, ids=str)
def test_arguments_that_a_grammar_holds_are_passed_on_as_they_come(transcript: Transcript) -> None:
    assert _read(transcript, held=True).whole == _read(transcript).whole
    assert _read(transcript, held=True, cuts="characters").whole == _read(transcript).whole


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_no_marker_stands_in_the_text(transcript: Transcript) -> None:
    for spelled in (False, True):
        text = _read(transcript, spelled=spelled, cuts="characters").text
        kept = {"<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"}
        if transcript.wire_format != "plain":
            assert [marker for marker in transcript.markers if marker in text and marker not in kept] == []


@pytest.mark.parametrize("transcript", HELD, ids=str)
def test_every_call_has_an_id_of_its_own(transcript: Transcript) -> None:
    ids = [*_read(transcript).ids, *_read(transcript).ids]
    assert len(set(ids)) == len(ids)
    form = r"[0-9A-Za-z]{9}" if transcript.wire_format == "mistral" else r"call_[0-9a-f]{24}"
    assert all(re.fullmatch(form, call_id) for call_id in ids)


@pytest.mark.parametrize("transcript", TRANSCRIPTS, ids=str)
def test_pieces_account_for_no_more_than_there_was(transcript: Transcript) -> None:
    known = vocabulary(transcript.markers, transcript.hidden)
    made = sum(len(text) for _, text in tokens(transcript.text, known, transcript.markers))
    assert _read(transcript, cuts="characters").consumed <= made


@pytest.mark.parametrize("transcript", HELD, ids=str)
def test_a_call_that_is_cut_by_length_is_passed_on_as_far_as_it_came(transcript: Transcript) -> None:
    """Cut anywhere: what there is begins the same answer, and what is said to be whole is."""
    known = vocabulary(transcript.markers, transcript.hidden)
    pieces = split(tokens(transcript.text, known, transcript.markers), list)
    whole = _read(transcript)
    for end in range(len(pieces)):
        for held in (False, True):
            answer = read(
                transcript.wire_format, pieces[:end], known, prompt_tail=transcript.prompt_tail, held=held, cut=True
            )
            assert len(answer.calls) <= len(whole.calls)
            for (name, arguments), (full_name, full), ended in zip(
                answer.calls, whole.calls, answer.ended, strict=False
            ):
                assert name == full_name and full.startswith(arguments) and (arguments == full or not ended)
