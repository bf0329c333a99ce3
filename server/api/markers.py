"""What clients write into a system prompt for themselves, and anew for every request, so that no prefix would ever be
found again. It is left out where a model cannot miss it, and always named. Pure. HTTP process.

Only what is addressed to another server. A date, a time, a folder or the state of a repository is for the model,
however often it changes, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from server.chat.parts import Message, TextPart

# Claude Code's, the first line of all: `x-anthropic-billing-header: cc_version=...; cc_entrypoint=cli; cch=...;`. Where
# the blocks of a system prompt were joined on the way, what it says goes on behind the last semicolon.
_MARKERS = {
    "x-anthropic-billing-header": re.compile(r"x-anthropic-billing-header:(?:[ \t]*[^\s=;]+=[^;\n]*;)+[ \t]*\n?"),
}


def without_markers(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages without them, and the names of those that are gone."""
    names: dict[str, None] = {}
    cleaned = (_cleaned(message, names) if message.role == "system" else message for message in messages)
    kept = tuple(message for message in cleaned if message is not None)
    # A conversation of nothing else is odd, and still one.
    return (kept, tuple(names)) if kept else (tuple(messages), ())


def notes(names: Sequence[str]) -> tuple[str, ...]:
    """For the log."""
    return tuple(f"left out of the system prompt, as it differs with every request: {name}" for name in names)


def _cleaned(message: Message, names: dict[str, None]) -> Message | None:
    """None when nothing is left of it."""
    for name, pattern in _MARKERS.items():
        for index, part in enumerate(message.parts):
            if isinstance(part, TextPart) and (found := pattern.match(part.text)):
                names[name] = None
                rest = part.text[found.end() :]
                parts = (*message.parts[:index], *((TextPart(rest),) if rest else ()), *message.parts[index + 1 :])
                return msgspec.structs.replace(message, parts=parts) if parts else None
    return message
