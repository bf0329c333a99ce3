"""Calls that are JSON objects with a name and arguments: between markers, in a list, or on their own. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from server.chat.formats.inlet import SPACE, Broken, Cut, Steps
from server.chat.formats.loose_json import JsonStyle, LooseJson
from server.chat.formats.reader import Calls
from server.chat.formats.schema import arguments_schema
from server.chat.tools import Tool

_ARGUMENTS = ("arguments", "parameters", "args")
_DEEPEST = 4


@dataclass
class _Call:
    tool: Tool | None = None
    # Arguments that came before the name.
    early: str | None = None
    done: bool = False


class JsonCalls:
    """`ends` are the markers that close calls, as symbols."""

    def __init__(self, calls: Calls, ends: tuple[str, ...]) -> None:
        self._calls = calls
        self._ends = ends
        self._style = JsonStyle(ends)

    def read(self) -> Steps[None]:
        """One object, several, or a list of them, and the marker behind them where there is one."""
        source = self._calls.source
        yield from source.skip()
        in_list = bool((yield from source.accept("[")))
        yield from self._one()
        while True:
            yield from source.skip(SPACE + ("," if in_list else ";,"))
            next_one = yield from source.peek()
            if next_one == "{":
                yield from self._one()
            elif in_list and next_one == "]":
                source.take(1)
                in_list = False
            else:
                break
        yield from source.accept(*self._ends)

    def _one(self) -> Steps[None]:
        source, out = self._calls.source, self._calls.out
        yield from source.skip()
        if not (yield from source.accept("{")):
            raise Broken
        call = _Call()
        yield from self._members(call, 0)
        if call.tool is None:
            raise Cut if source.ended and source.cut else Broken
        if not call.done:
            out.begin(call.tool.name)
            out.arguments(call.early or "{}")
        out.end()

    def _members(self, call: _Call, depth: int) -> Steps[None]:
        source = self._calls.source
        while True:
            yield from source.skip(SPACE + ",")
            if (yield from source.accept("}")) or (yield from source.starts(*self._ends)):
                return
            if not (yield from source.peek()):
                if source.cut:
                    raise Cut
                return
            key = yield from self._string()
            yield from source.skip()
            if not (yield from source.accept(":")):
                raise Cut if source.ended and source.cut else Broken
            yield from source.skip()
            yield from self._member(call, key, depth)

    def _member(self, call: _Call, key: str, depth: int) -> Steps[None]:
        source = self._calls.source
        next_one = yield from source.peek()
        if key in ("name", "function") and next_one != "{" and call.tool is None:
            call.tool = self._calls.tool((yield from self._string()))
        elif key == "function" and depth < _DEEPEST and (yield from source.accept("{")):
            yield from self._members(call, depth + 1)
        elif key in _ARGUMENTS and not call.done and call.early is None:
            yield from self._arguments(call)
        else:
            # An id or a type, of which the answer has its own.
            yield from LooseJson(source, self._style, lambda text: None).value(None, depth=depth)

    def _arguments(self, call: _Call) -> Steps[None]:
        source, out = self._calls.source, self._calls.out
        if (yield from source.peek()) != "{":
            call.early = yield from self._as_text()
            return
        source.take(1)
        if call.tool is None:
            early: list[str] = []
            yield from LooseJson(source, self._style, early.append).members(None, "{")
            call.early = "".join(early)
            return
        out.begin(call.tool.name)
        yield from LooseJson(source, self._style, out.arguments).members(arguments_schema(call.tool), "{")
        call.done = True

    def _as_text(self) -> Steps[str]:
        """Arguments that are null, or a string which is an object's JSON."""
        copied: list[str] = []
        yield from LooseJson(self._calls.source, self._style, copied.append).value(None)
        value = json.loads("".join(copied))
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value, strict=False)
            except (ValueError, RecursionError):
                raise Broken from None
            if not isinstance(value, dict):
                raise Broken
        if value and not isinstance(value, dict):
            raise Broken
        return json.dumps(value or {}, ensure_ascii=False).encode("utf-8", "replace").decode()

    def _string(self) -> Steps[str]:
        copied: list[str] = []
        yield from LooseJson(self._calls.source, self._style, copied.append).value(None)
        value = json.loads("".join(copied))
        if not isinstance(value, str):
            raise Broken
        return value
