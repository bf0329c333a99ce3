"""Token ids to deltas: channels, stop strings across any borders, held-back text, logprobs with what they belong to."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from types import FrameType

import pytest

from server.chat.channels import Channels, Piece, ReasoningPiece, TextPiece, ToolCallPiece
from server.chat.deltas import Delta, ReasoningDelta, TextDelta, ToolCallDelta
from server.chat.output import ChoiceOutput
from server.chat.stops import StopFinder
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.engine_client.protocol import TokenLogprob
from tests.support.tiny_model import END_ID, START_ID, write_tiny_model
from tests.support.vocabulary import vocabulary_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    return ChatTokenizer.load(write_tiny_model(tmp_path_factory.mktemp("model")))


def _deltas(
    tokenizer: ChatTokenizer,
    ids: list[int],
    stop: tuple[str, ...] = (),
    logprobs: bool = False,
    per_push: int = 1,
    channels: Channels | None = None,
) -> tuple[list[Delta], bool]:
    """All deltas of an answer of `ids`; the i-th token's logprob is -i."""
    output = ChoiceOutput(vocabulary_of(tokenizer), stop, 3, logprobs, channels)
    deltas: list[Delta] = []
    stopped = False
    for at in range(0, len(ids), per_push):
        batch = ids[at : at + per_push]
        scores = [TokenLogprob(token, -float(at + i), [(token, -0.5)]) for i, token in enumerate(batch)]
        some, stopped = output.push(batch, scores if logprobs else [])
        deltas += some
        if stopped:
            break
    return deltas + output.finish(), stopped


def _run(
    tokenizer: ChatTokenizer, ids: list[int], stop: tuple[str, ...] = (), logprobs: bool = False, per_push: int = 1
) -> tuple[list[TextDelta], bool]:
    """The same of a model without channels: all of it is text."""
    deltas, stopped = _deltas(tokenizer, ids, stop, logprobs, per_push)
    return [delta for delta in deltas if isinstance(delta, TextDelta)], stopped


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
    pieces = list(map(vocabulary_of(tokenizer).stream().push, ids))
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


class MarkedThoughts:
    """A small parser: START_ID opens a thought and closes it again, END_ID a tool call; a tilde in a thought is left
    out, and so is the space before it, which is held back until then."""

    def __init__(self) -> None:
        self._channel = "text"
        self._held = ""
        self._left_out = 0

    @property
    def reasoning(self) -> bool:
        return self._channel == "thought"

    def push(self, token: int, text: str) -> Iterable[Piece]:
        held = self._held
        self._held = ""
        if token in (START_ID, END_ID):
            if held:
                yield self._piece(held)
            opened = "thought" if token == START_ID else "call"
            self._channel = "text" if self._channel == opened else opened
        elif self._channel == "thought" and text == " ":
            self._held = held + text
        elif text == "~":
            self._left_out += len(held + text)
        elif text:
            yield self._piece(held + text)

    def finish(self, text: str, cut: bool = False) -> Iterable[Piece]:
        if rest := self._held + text:
            yield self._piece(rest)

    def _piece(self, text: str) -> Piece:
        consumed = self._left_out + len(text)
        self._left_out = 0
        match self._channel:
            case "text":
                return TextPiece(text, consumed)
            case "thought":
                return ReasoningPiece(text, consumed)
        return ToolCallPiece(0, consumed, arguments=text)


def _ids(tokenizer: ChatTokenizer, *spelled: str | int) -> list[int]:
    """Every string as one token for each of its characters' encodings; control tokens by their id."""
    ids = []
    for piece in spelled:
        ids += [piece] if isinstance(piece, int) else [t for c in piece for t in tokenizer.encode(c, False)]
    return ids


def _shape(deltas: Sequence[Delta]) -> list[tuple[type[Delta], str]]:
    return [(type(delta), delta.arguments if isinstance(delta, ToolCallDelta) else delta.text) for delta in deltas]


def test_a_parser_of_channels_sees_the_special_tokens_that_show_no_text(tokenizer: ChatTokenizer) -> None:
    ids = _ids(tokenizer, "a", START_ID, "b", START_ID, "c", END_ID, "{}", END_ID, "d")
    deltas, _ = _deltas(tokenizer, ids, channels=MarkedThoughts())
    assert _shape(deltas) == [
        (TextDelta, "a"),
        (ReasoningDelta, "b"),
        (TextDelta, "c"),
        (ToolCallDelta, "{"),
        (ToolCallDelta, "}"),
        (TextDelta, "d"),
    ]
    assert all(delta.choice == 3 for delta in deltas)


def test_pieces_of_one_push_that_stand_side_by_side_in_one_channel_are_one_delta(tokenizer: ChatTokenizer) -> None:
    ids = _ids(tokenizer, "ab", START_ID, "cd", START_ID, "ef")
    deltas, _ = _deltas(tokenizer, ids, channels=MarkedThoughts(), logprobs=True, per_push=100)
    assert _shape(deltas) == [(TextDelta, "ab"), (ReasoningDelta, "cd"), (TextDelta, "ef")]


@pytest.mark.parametrize("per_push", [1, 2, 100])
def test_logprobs_survive_channels(tokenizer: ChatTokenizer, per_push: int) -> None:
    """Each with the delta that carries the beginning of its text, a marker's with the next; none lost, in order."""
    ids = _ids(tokenizer, "a", START_ID, "b ~", "c👋 ", START_ID, "d", END_ID, "{", END_ID)
    deltas, _ = _deltas(tokenizer, ids, logprobs=True, per_push=per_push, channels=MarkedThoughts())
    tokens = [(token.id, token.logprob) for delta in deltas for token in delta.tokens]
    assert tokens == [(token, -float(i)) for i, token in enumerate(ids)]
    joined: dict[type[Delta], bytes] = {}
    for delta in deltas:
        shown = b"".join(t.raw for t in delta.tokens if t.id not in (START_ID, END_ID))
        joined[type(delta)] = joined.get(type(delta), b"") + shown
    assert joined[TextDelta] == b"ad"
    assert joined[ReasoningDelta].decode() == "b ~c👋 "
    assert joined[ToolCallDelta] == b"{"


def test_the_logprob_of_a_marker_comes_with_what_is_behind_it(tokenizer: ChatTokenizer) -> None:
    deltas, _ = _deltas(
        tokenizer, _ids(tokenizer, "a", START_ID, "b", START_ID), logprobs=True, channels=MarkedThoughts()
    )
    assert [(type(delta), [token.id for token in delta.tokens]) for delta in deltas] == [
        (TextDelta, _ids(tokenizer, "a")),
        (ReasoningDelta, _ids(tokenizer, START_ID, "b")),
        (TextDelta, [START_ID]),
    ]


def test_stop_strings_look_at_the_text_only(tokenizer: ChatTokenizer) -> None:
    ids = _ids(tokenizer, START_ID, "xSTOPx", START_ID, "aST", END_ID, "STOP", END_ID, "OP bSTOPc", START_ID, "d")
    deltas, stopped = _deltas(tokenizer, ids, ("STOP",), logprobs=True, channels=MarkedThoughts(), per_push=100)
    assert stopped
    assert [shape for shape in _shape(deltas) if shape[0] is not ToolCallDelta] == [
        (ReasoningDelta, "xSTOPx"),
        # What is held back leaves before the call: a stop string does not reach across one.
        (TextDelta, "aST"),
        (TextDelta, "OP b"),
    ]
    last = deltas[-1]
    assert [token.text for token in last.tokens if token.id != END_ID] == ["O", "P", " ", "b"]


def test_logprobs_of_text_that_is_held_back_wait_while_a_marker_passes(tokenizer: ChatTokenizer) -> None:
    """Behind a thought without a word the text goes on, and so does the stop string that has begun."""
    ids = _ids(tokenizer, "aST", START_ID, START_ID, "OPb")
    deltas, stopped = _deltas(tokenizer, ids, ("STOP",), logprobs=True, channels=MarkedThoughts())
    assert stopped and _shape(deltas) == [(TextDelta, "a")]
    assert [token.text for delta in deltas for token in delta.tokens] == ["a"]


def _python_calls(output: ChoiceOutput, ids: list[int]) -> float:
    """How many functions written in Python one push of one token enters, on average."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        for token in ids:
            output.push((token,), ())
    finally:
        sys.setprofile(None)
    return calls / len(ids)


def test_a_push_stays_short_however_long_the_answer(tokenizer: ChatTokenizer) -> None:
    ids = tokenizer.encode("The capital of France is Paris, and the river is the Seine. " * 20, False)
    plain = ChoiceOutput(vocabulary_of(tokenizer), (), 0, False)
    _python_calls(plain, ids)
    # The push, the token stream's, the token's bytes, their decoding, the delta.
    assert _python_calls(plain, ids) <= 5
    with_stops = ChoiceOutput(vocabulary_of(tokenizer), ("\n\nUser:", "</answer>"), 0, False)
    early, late = _python_calls(with_stops, ids), _python_calls(with_stops, ids)
    assert late <= early <= 50
