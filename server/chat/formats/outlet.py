"""Where a parser of an answer puts what it finds, as pieces of channels. Pure.

A call is an attempt. Where nothing holds the model to a call's form, its pieces wait until it is whole, so that one
that breaks off can still be given back as text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace

from server.chat.channels import Piece, ReasoningPiece, TextPiece, ToolCallPiece
from server.chat.formats.inlet import Inlet


def new_call_id() -> str:
    return "call_" + secrets.token_hex(12)


class Outlet:
    """`calls`: how many calls were passed on, whole or cut."""

    def __init__(self, source: Inlet, call_id: Callable[[], str] = new_call_id) -> None:
        self.calls = 0
        self._source = source
        self._call_id = call_id
        self._ready: list[Piece] = []
        self._attempt: list[Piece] = []
        self._waits = False
        self._written: list[str] | None = None
        self._space = ""

    def ready(self) -> list[Piece]:
        pieces, self._ready = self._ready, []
        return pieces

    def text(self, symbols: str) -> None:
        self._put_text(self._source.symbols.shown(symbols))

    def reasoning(self, symbols: str) -> None:
        if text := self._source.symbols.shown(symbols):
            self._ready.append(ReasoningPiece(text, self._consumed()))

    def _put_text(self, text: str) -> None:
        if text:
            self._ready.append(TextPiece(text, self._consumed()))

    def _consumed(self) -> int:
        consumed, self._source.consumed = self._source.consumed, 0
        return consumed

    # ---- calls

    def attempt(self, space: str, wait: bool) -> None:
        """A call may begin. `space` before it is part of it; with `wait` its pieces stay here until it is whole."""
        self._waits = wait
        self._space = space
        self._source.record()

    def begin(self, name: str) -> None:
        self._written = []
        self._put(ToolCallPiece(self.calls, self._consumed(), id=self._call_id(), name=name))

    def arguments(self, text: str) -> None:
        """The next piece of the arguments, valid JSON so far."""
        if text:
            assert self._written is not None
            self._written.append(text)
            self._put(ToolCallPiece(self.calls, self._consumed(), arguments=text))

    def end(self) -> None:
        """The call is whole."""
        self._put(ToolCallPiece(self.calls, self._consumed(), ended=True))
        self._pass_on()
        self._space = ""
        self._source.record()

    def give_up(self) -> str:
        """The attempt failed. What it has read since the last whole call; where a part of a call has been passed on
        already, that is made whole, and nothing."""
        read = self._space + self._source.recorded()
        if self._written is not None and not self._waits:
            self.arguments(closing("".join(self._written)))
            self.end()
            read = ""
        self._attempt.clear()
        self._written = None
        return read

    def cut(self) -> str:
        """The answer was cut. What has come of a call is passed on, and else as with `give_up`."""
        if self._written is None:
            return self.give_up()
        self._pass_on()
        return ""

    def _pass_on(self) -> None:
        self._ready += self._attempt
        self._attempt.clear()
        self._written = None
        self.calls += 1

    def _put(self, piece: ToolCallPiece) -> None:
        pieces = self._attempt if self._waits else self._ready
        last = pieces[-1] if pieces else None
        if isinstance(last, ToolCallPiece) and last.index == piece.index and not last.ended and not last.id:
            pieces[-1] = replace(
                last,
                arguments=last.arguments + piece.arguments,
                consumed=last.consumed + piece.consumed,
                ended=piece.ended,
            )
        else:
            pieces.append(piece)


def closing(beginning: str) -> str:
    """What makes the beginning of a JSON object whole, where it ends in a string or behind a value or an opening."""
    if not beginning:
        return "{}"
    open_brackets = []
    in_string = escaped = False
    for character in beginning:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "{[":
            open_brackets.append("}" if character == "{" else "]")
        elif character in "}]":
            open_brackets.pop()
    return ('"' if in_string else "") + "".join(reversed(open_brackets))


def json_text(text: str) -> str:
    """As the inside of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
