"""Whether a rendered prompt holds what its messages say. Pure.

A template that leaves a message out, because it knows no such role or expects another kind of content, gives a prompt
that looks well and an answer that is none. What a template does to a text on its way (trimming it, escaping it as
JSON, taking thoughts or switches out) is the template's own: where a text is not found as it is, a word in its place
has to be.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from msgspec.structs import replace

from server.chat.parts import Message, Part, TextPart, ToolCallPart, ToolResultPart
from server.chat.templates.content_style import PROBE
from server.chat.templates.turns import Messages
from server.errors import InvalidRequest


def lost_message(
    messages: Messages, text: str, content: Callable[[Message], str], render: Callable[[Messages], str]
) -> Message | None:
    """The first of `messages` whose text `text` leaves out. `content` is a message's text as it was rendered."""
    cursor = 0
    in_order = True
    said = {i: expected for i, m in enumerate(messages) if (expected := content(m).strip()) and not _may_be_left_out(m)}
    missing = []
    for index, expected in said.items():
        found = text.find(expected, cursor)
        if found >= 0:
            cursor = found + len(expected)
            continue
        in_order = False
        if not any(form in text for form in _forms(expected)):
            missing.append(index)
    if in_order:
        return None
    # A short text may have been found in another: what is out of order is looked at as well.
    probed = tuple(
        _probing(message, f"{PROBE}{index}.") if index in (missing or said) else message
        for index, message in enumerate(messages)
    )
    try:
        seen = render(probed).lower()
    except InvalidRequest:
        return messages[missing[0]] if missing else None
    return next((messages[index] for index in missing or said if f"{PROBE}{index}." not in seen), None)


def _may_be_left_out(message: Message) -> bool:
    """Some models are trained on calls without the words before them."""
    return message.role == "assistant" and any(isinstance(part, ToolCallPart) for part in message.parts)


def _forms(expected: str) -> tuple[str, ...]:
    return expected, json.dumps(expected, ensure_ascii=False)[1:-1], json.dumps(expected)[1:-1]


def _probing(message: Message, word: str) -> Message:
    """`message` with `word` for its text."""
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, TextPart | ToolResultPart):
            parts.append(replace(part, text=word))
            word = ""
        else:
            parts.append(part)
    return replace(message, parts=tuple(parts))
