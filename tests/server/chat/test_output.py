"""Token ids to text events: stop strings across any borders, held-back text, logprobs with the text they belong to."""

from __future__ import annotations

import random
import time

import pytest

from server.chat.deltas import TextDelta
from server.chat.output import ChoiceOutput, StopFinder
from server.chat.tokenizer import ChatTokenizer
from server.engine_client.protocol import TokenLogprob
from tests.support.tiny_model import END_ID, write_tiny_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(write_tiny_model(tmp_path_factory.mktemp("model")))


def _run(
    tokenizer: ChatTokenizer, ids: list[int], stop: tuple[str, ...] = (), logprobs: bool = False, per_push: int = 1
) -> tuple[list[TextDelta], bool]:
    """All events of an answer of `ids`; the i-th token's logprob is -i."""
    output = ChoiceOutput(tokenizer, stop, 3, logprobs)
    events: list[TextDelta | None] = []
    stopped = False
    for at in range(0, len(ids), per_push):
        batch = ids[at : at + per_push]
        scores = [TokenLogprob(token, -float(at + i), [(token, -0.5)]) for i, token in enumerate(batch)]
        event, stopped = output.push(batch, scores if logprobs else [])
        events.append(event)
        if stopped:
            break
    events.append(output.finish())
    return [event for event in events if event is not None], stopped


def _text(events: list[TextDelta]) -> str:
    return "".join(event.text for event in events)


def _reference(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """Character by character: the answer ends as soon as it ends in a stop string, before the longest such one."""
    for end in range(1, len(text) + 1):
        if hits := [s for s in stop if text[:end].endswith(s)]:
            return text[: end - max(map(len, hits))], True
    return text, False


def test_without_stop_strings_each_token_gives_its_text_at_once(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("Hello, the world 👋 ends", False)
    events, stopped = _run(tokenizer, ids)
    assert _text(events) == "Hello, the world 👋 ends" and not stopped
    pieces = list(map(tokenizer.stream().push, ids))
    assert [event.text for event in events] == [piece for piece in pieces if piece]
    assert all(event.choice == 3 and event.text for event in events)


def test_an_answer_cut_inside_a_character_ends_with_the_replacement_character(tokenizer: ChatTokenizer) -> None:
    events, _ = _run(tokenizer, tokenizer.encode("a👋", False)[:-1])
    assert [event.text for event in events] == ["a", "\ufffd"]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one\n\ntwo", ("\n\n",), "one"),
        ("the end of it", (" end",), "the"),
        ("STOP", ("STOP",), ""),
        ("abcabd", ("abd",), "abc"),
        ("aaab", ("aab",), "a"),
        ("abcd", ("abcd", "bc"), "a"),
        ("xabc", ("c", "abc"), "x"),
        ("wave 👋 now", ("👋",), "wave "),
        ("👋🏽", ("🏽",), "👋"),
        ("almost STO", ("STOP",), "almost STO"),
        ("é" * 5 + "!", ("éé!",), "ééé"),
    ],
)
def test_a_stop_string_ends_the_answer_before_it(
    tokenizer: ChatTokenizer, text: str, stop: tuple[str, ...], expected: str
) -> None:
    events, stopped = _run(tokenizer, tokenizer.encode(text, False), stop)
    assert (_text(events), stopped) == (expected, expected != text)


def test_what_may_begin_a_stop_string_is_held_back_and_nothing_else(tokenizer: ChatTokenizer) -> None:
    finder = StopFinder(("<end>", "enough"))
    assert [finder.push(piece) for piece in ("a <", "e", "x e", "nou", "n", "<en")] == [
        "a ",
        "",
        "<ex ",
        "",
        "enoun",
        "",
    ]
    assert finder.flush() == "<en"


def test_random_texts_cut_at_random_places_stop_where_the_definition_says() -> None:
    rng = random.Random(11)
    for _ in range(3000):
        text = "".join(rng.choices("aab\nb👋", k=rng.randrange(16)))
        stop = tuple("".join(rng.choices("aab\nb👋", k=rng.randrange(1, 5))) for _ in range(rng.randrange(1, 4)))
        finder = StopFinder(stop)
        sent = ""
        rest = text
        while rest and not finder.stopped:
            size = rng.randrange(0, 5)
            sent += finder.push(rest[:size])
            rest = rest[size:]
            # Never sent too early, never held without need.
            if not finder.stopped:
                seen = text[: len(text) - len(rest)]
                held = seen[len(sent) :]
                assert seen.startswith(sent) and (not held or any(s.startswith(held) for s in stop))
        assert (sent + finder.flush(), finder.stopped) == _reference(text, stop), (text, stop)


def test_the_number_of_tokens_per_push_changes_nothing(tokenizer: ChatTokenizer) -> None:
    rng = random.Random(5)
    for _ in range(200):
        text = "".join(rng.choices(["the ", "answer", "\n", "é", "👋", "an", "s"], k=12))
        stop = ("answer\n", "s👋", "thé")
        ids = tokenizer.encode(text, False)
        for per_push in (1, 2, 5, 100):
            events, stopped = _run(tokenizer, ids, stop, logprobs=True, per_push=per_push)
            assert (_text(events), stopped) == _reference(text, stop)


def test_logprobs_come_with_the_text_they_belong_to(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("hi 👋!", False)
    events, _ = _run(tokenizer, ids, logprobs=True)
    for event in events:
        assert b"".join(token.raw for token in event.tokens).decode() == event.text
    tokens = [token for event in events for token in event.tokens]
    assert [token.id for token in tokens] == ids
    assert [token.logprob for token in tokens] == [-float(i) for i in range(len(ids))]
    assert all(token.top == ((token.id, token.text, token.raw, -0.5),) for token in tokens)


def test_logprobs_of_held_back_text_wait_for_it(tokenizer: ChatTokenizer) -> None:
    ids = [token for piece in ("x", "y", "z", "x", "y", "q") for token in tokenizer.encode(piece, False)]
    events, _ = _run(tokenizer, ids, ("xyq!",), logprobs=True)
    assert [(event.text, [token.text for token in event.tokens]) for event in events] == [
        ("xyz", ["x", "y", "z"]),
        ("xyq", ["x", "y", "q"]),
    ]


def test_logprobs_of_a_stop_string_and_behind_it_are_not_sent(tokenizer: ChatTokenizer) -> None:
    ids = [token for piece in ("a", "b", "STO", "P", "c") for token in tokenizer.encode(piece, False)]
    events, stopped = _run(tokenizer, ids, ("STOP",), logprobs=True, per_push=100)
    assert stopped and _text(events) == "ab"
    assert [token.text for event in events for token in event.tokens] == ["a", "b"]


def test_no_logprob_is_lost_when_the_answer_ends_without_text(tokenizer: ChatTokenizer) -> None:
    ids = [*tokenizer.encode("a", False), END_ID]
    events, _ = _run(tokenizer, ids, logprobs=True)
    assert [(event.text, [token.id for token in event.tokens]) for event in events] == [("a", ids[:1]), ("", ids[1:])]


def test_a_push_costs_microseconds(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("The capital of France is Paris, and the river is the Seine. " * 200, False)
    for stop, most_us in (((), 20), (("\n\nUser:", "</answer>"), 60)):
        output = ChoiceOutput(tokenizer, stop, 0, False)
        start = time.thread_time()
        for token in ids:
            output.push((token,), ())
        assert (time.thread_time() - start) / len(ids) * 1e6 < most_us
