"""Calls as tags, one of them for each argument, whose values are bare text: typed by the tool's schema. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from server.chat.formats.inlet import Broken, Cut, Steps, Stops
from server.chat.formats.outlet import json_text
from server.chat.formats.reader import Calls
from server.chat.formats.schema import Schema, arguments_schema, typed

_LONGEST_NAME = 256


@dataclass(frozen=True, slots=True)
class Tags:
    """As symbols. `call` and `argument` go on with a name and ">"; `section_end` closes all calls together."""

    call: str
    call_end: str
    argument: str
    argument_end: str
    section_end: str


class XmlCalls:
    def __init__(self, calls: Calls, tags: Tags) -> None:
        self._calls = calls
        self._tags = tags

    def read(self, begun: bool = False) -> Steps[None]:
        """Calls and the tag behind them. `begun`: the tag of the first was taken."""
        source, tags = self._calls.source, self._tags
        if not begun:
            yield from source.skip()
            if not (yield from source.accept(tags.call)):
                raise Cut if source.ended and source.cut and tags.call.startswith(source.unread) else Broken
        while True:
            yield from self._one()
            yield from source.skip()
            if not (yield from source.accept(tags.call)):
                break
        yield from source.accept(tags.section_end)

    def _one(self) -> Steps[None]:
        source, out, tags = self._calls.source, self._calls.out, self._tags
        tool = self._calls.tool((yield from self._name()))
        schema = arguments_schema(tool)
        out.begin(tool.name)
        out.arguments("{")
        lead = ""
        while True:
            yield from source.skip()
            if (yield from source.accept(tags.call_end)) or (yield from source.starts(tags.section_end)):
                break
            if not (yield from source.peek()) and not source.cut:
                break
            if not (yield from source.accept(tags.argument)):
                raise Cut if source.ended and source.cut else Broken
            name = yield from self._name()
            ends = (tags.argument_end, *(tag for tag in (tags.section_end,) if len(tag) == 1))
            yield from copy_value(self._calls, schema.of(name), f'{lead}"{json_text(name)}": ', ends)
            yield from source.accept(tags.argument_end)
            lead = ", "
        out.arguments("}")
        out.end()

    def _name(self) -> Steps[str]:
        name: list[str] = []
        _, stop = yield from self._calls.source.until(Stops(">", "\n"), name.append)
        text = "".join(name).strip().strip("\"'")
        if not stop:
            raise Cut if self._calls.source.cut else Broken
        if not text or len(text) > _LONGEST_NAME:
            raise Broken
        self._calls.source.take(1)
        return text


def copy_value(calls: Calls, schema: Schema | None, lead: str, ends: tuple[str, ...]) -> Steps[None]:
    """A bare value up to one of `ends`, which stays. A string is passed on as it comes. The line breaks that a model
    puts around a value are not part of it."""
    source, out = calls.source, calls.out
    shown = source.symbols.shown
    wrapped = bool((yield from source.accept("\n")))
    hold = "\n" if wrapped else ""
    stops = Stops(*ends)
    if schema is None or schema.is_text:
        out.arguments(lead + '"')
        space, stop = yield from source.until(stops, lambda text: out.arguments(json_text(shown(text))), hold)
        out.arguments(json_text(space[:-1]))
    else:
        parts: list[str] = []
        space, stop = yield from source.until(stops, parts.append, hold)
        if stop:
            out.arguments(lead + typed(shown("".join(parts)) + space[:-1], schema))
    if not stop:
        raise Cut if source.cut else Broken
    if schema is None or schema.is_text:
        out.arguments('"')
