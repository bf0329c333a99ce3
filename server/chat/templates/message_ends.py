"""Where the messages end in a prompt, found in one more rendering in which their texts carry marks. Pure; text process.

What the template writes behind the last message, before the model is to answer, is how it closes a message. A message
ends behind that; where the template closes other roles otherwise, behind its own text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

from msgspec.structs import replace

from server.chat.encoded import End
from server.chat.parts import Message, Part, TextPart, ToolCallPart, ToolResultPart
from server.chat.templates.turns import Messages

# Ends of older messages were checkpointed when they were new.
_LATEST = 8
_LONGEST_CLOSING = 256
# A number between two noncharacters: 2 i where the text of message i begins, 2 i + 1 where it ends.
_MARK = "\ufdef{}\ufdef"
_MARKS = re.compile(_MARK.format("([0-9]{1,9})"))
_BEGIN, _END = re.compile(r"(?=\S)|\Z"), re.compile(r"(?<=\S)(?=\s*\Z)|\Z")


def excerpt(messages: Messages) -> Messages:
    """The messages before the assistant first speaks, then those from one of its later turns on. All are among them
    whose ends are looked for, and the roles still alternate as templates demand."""
    spoken = [i for i, message in enumerate(messages) if message.role == "assistant"]
    late = [i for i in spoken if i < len(messages) - _LATEST]
    return messages[: spoken[0]] + messages[late[-1] :] if late else messages


def with_marks(messages: Messages) -> Messages:
    """Marks stand inside the space round a text, which templates trim."""
    return tuple(_marked(message, i) for i, message in enumerate(messages))


def message_ends(messages: Messages, prompt: str, marked: str, *, is_excerpt: bool) -> tuple[End, ...]:
    """Ends in `prompt` of the system message and of the latest messages, ascending. `marked` is the rendering of
    `messages`, all of the prompt's or an excerpt, `with_marks` and without a generation prompt. What stands before an
    end in it, and between two latest ones, must be what the prompt has there."""
    first, *rest = _MARKS.split(marked)
    marks, texts = [int(mark) for mark in rest[::2]], rest[1::2]
    plain = first + "".join(texts)
    found = [(i, offset) for i, offset in _found(messages, marks, texts, len(first)) if _is_wanted(messages, i)]
    early = [(i, offset) for i, offset in found if i == 0 or not is_excerpt]
    late = found[len(early) :]
    ends = [(i, offset) for i, offset in early if prompt.startswith(plain[:offset])]
    if len(late) > 1:
        start, stop = late[0][1], late[-1][1]
        # Counted from the last place, since the same may have been said before.
        shift = prompt.rfind(plain[start:stop]) - start
        ends += [(i, offset + shift) for i, offset in late if shift + start >= 0]
    return tuple(End(offset, messages[i].role) for i, offset in ends if offset <= len(prompt))


def _is_wanted(messages: Messages, i: int) -> bool:
    """A last message of the assistant's is one that it goes on with."""
    if messages[i].role == "assistant" and i == len(messages) - 1:
        return False
    return i >= len(messages) - _LATEST or (i == 0 and messages[i].role == "system")


def _marked(message: Message, index: int) -> Message:
    parts = list(message.parts)
    texts = [(i, part) for i, part in enumerate(parts) if isinstance(part, TextPart | ToolResultPart)]
    spoken = [(i, part) for i, part in texts if part.text.strip()]
    if not spoken and not _has_calls(message):
        # A turn is written also where nothing was said; beside a call, the empty text may be left out.
        spoken = texts
    if spoken:
        first, last = spoken[0][0], spoken[-1][0]
        parts[first] = _with_mark(parts[first], 2 * index, _BEGIN)
        parts[last] = _with_mark(parts[last], 2 * index + 1, _END)
    return replace(message, parts=tuple(parts))


def _with_mark(part: Part, mark: int, place: re.Pattern[str]) -> Part:
    if not isinstance(part, TextPart | ToolResultPart):
        raise TypeError(f"{part!r} has no text")
    return replace(part, text=place.sub(_MARK.format(mark), part.text, count=1))


def _found(messages: Messages, marks: list[int], texts: list[str], start: int) -> Iterator[tuple[int, int]]:
    """Every message whose end is found, with its offset in the text without marks. `texts` are those behind `marks`,
    the first of which is at `start`."""
    last = len(messages) - 1
    starts = list(accumulate(map(len, texts), initial=start))
    gaps = [
        (place, mark // 2, next_mark // 2)
        for place, (mark, next_mark) in enumerate(pairwise(marks))
        if mark % 2 == 1 and next_mark % 2 == 0 and mark < next_mark <= 2 * last
    ]
    is_last_marked = bool(marks) and marks[-1] == 2 * last + 1
    turns = [texts[place] for place, before, _ in gaps if messages[before].role != "tool"]
    closing = _closing(texts[-1], turns) if is_last_marked else ""
    for place, before, behind in gaps:
        for i, offset in _between(messages[before:behind], texts[place], closing):
            yield before + i, starts[place] + offset
    if is_last_marked:
        yield last, starts[-1]


def _closing(tail: str, gaps: Sequence[str]) -> str:
    """How the template closes a message: the longest end of `tail`, which stands behind the last one, that also begins
    one of `gaps`. A last message that is the result of a tool is closed before the turn that holds it."""
    if len(tail) > _LONGEST_CLOSING:
        return ""
    starts = tuple(gap.lstrip() for gap in gaps)
    ends = (tail[i:] for i in range(len(tail.rstrip())))
    return next((end for end in ends if any(start.startswith(end) for start in starts)), tail.lstrip())


def _between(messages: Messages, gap: str, closing: str) -> Iterator[tuple[int, int]]:
    """The ends in what stands between two texts. `messages`: the one whose text is before it, and those without any."""
    closed = [match.end() for match in re.finditer(re.escape(closing), gap)] if closing else []
    if len(messages) > 1:
        yield from zip((0, len(messages) - 1), closed[:1] + closed[1:][-1:], strict=False)
    elif closed:
        yield 0, closed[-1]
    elif gap.strip() and _ends_with_its_text(messages[0]):
        # With nothing but space between them, two texts are one message to the template.
        yield 0, len(gap) - len(gap.lstrip())


def _ends_with_its_text(message: Message) -> bool:
    """Calls stand behind the text; system messages and results may be part of a turn that goes on."""
    return message.role in ("user", "assistant") and not _has_calls(message)


def _has_calls(message: Message) -> bool:
    return any(isinstance(part, ToolCallPart) for part in message.parts)
