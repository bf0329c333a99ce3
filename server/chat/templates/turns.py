"""Message orders that clients send and templates refuse, brought into an order that every template accepts. Pure.

Agents send several system messages, system messages in the middle, and several user turns in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import takewhile

from msgspec.structs import replace

from server.chat.parts import Message, Part, TextPart

Messages = tuple[Message, ...]


def arrangements(messages: Messages) -> Iterator[Messages]:
    """Ways to say the same, the most faithful first: as sent, then with turns that alternate, then without a system
    message for templates that have none. Leading system messages are joined in all of them."""
    count = sum(1 for _ in takewhile(lambda message: message.role == "system", messages))
    head, rest = messages[:count], messages[count:]
    head = (Message("system", _joined(*head)),) if head else ()
    seen = []
    for arrangement in (head + rest, head + _alternating(rest), _alternating(head + rest)):
        if arrangement not in seen:
            seen.append(arrangement)
            yield arrangement


def _alternating(messages: Iterable[Message]) -> Messages:
    """System messages said by the user, and neighbours of one role (tool results aside) joined by a blank line."""
    turns: list[Message] = []
    for message in messages:
        turn = replace(message, role="user") if message.role == "system" else message
        if turns and turns[-1].role == turn.role != "tool":
            turns[-1] = replace(turn, parts=_joined(turns[-1], turn))
        else:
            turns.append(turn)
    return tuple(turns)


def _joined(*messages: Message) -> tuple[Part, ...]:
    parts: list[Part] = []
    for message in messages:
        if parts and message.text:
            parts.append(TextPart("\n\n"))
        parts += message.parts if message.text else (part for part in message.parts if not isinstance(part, TextPart))
    return tuple(parts)
