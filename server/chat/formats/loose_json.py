"""JSON as models write it, copied piece by piece as JSON that every reader takes. Pure.

Two families write it: JSON proper, in which models forget a brace, write Python's words and quotes, or a line break
inside a string; and Gemma's, whose keys and words are bare and whose strings stand between markers, without escapes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from server.chat.formats.inlet import SPACE, Broken, Cut, Inlet, Steps, Stops
from server.chat.formats.outlet import json_text
from server.chat.formats.schema import ToolSchema, scalar, typed

_DEEPEST = 64
_LONGEST_KEY = 256
_PLAIN = {quote: re.compile(rf"[^\\{quote}\x00-\x1f\ud800-\udfff]+") for quote in "\"'"}
_ESCAPES = {character: "\\" + character for character in '"\\/bfnrt'} | {"'": "'"}
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_NAME = re.compile(r"[^\s,:=(){}\[\]\"'\ud800-\udfff<]*\s*")
_CLOSING = {"{": "}", "[": "]", "(": ")"}


@dataclass(frozen=True, slots=True)
class JsonStyle:
    """`mark` encloses strings without escapes. `bare`: a word that is no number, truth or null is a string. `ends` are
    markers that end everything that is open."""

    ends: tuple[str, ...] = ()
    mark: str = ""
    bare: bool = False


class LooseJson:
    """Copies from `source`. What it gives to `emit` is the beginning of valid JSON at every moment."""

    def __init__(self, source: Inlet, style: JsonStyle, emit: Callable[[str], None]) -> None:
        self._source = source
        self._style = style
        self._emit = emit
        self._marked = Stops(style.mark, *style.ends)
        # What follows the comma behind a word without quotes: only then has the word ended.
        mark = re.escape(style.mark) or r"(?!)"
        self._next = re.compile(rf",\s*(?:[}}\])\"']|{mark}|[^\s,:={{}}()\[\]]+\s*[:=])")

    def members(self, schema: ToolSchema | None, bracket: str, lead: str = "", depth: int = 0) -> Steps[None]:
        """An object whose `bracket` was taken, as far as its end; in parentheses it is a call as Python writes it."""
        if depth > _DEEPEST:
            raise Broken
        source, close = self._source, _CLOSING[bracket]
        self._emit(lead + "{")
        seen: list[str] = []
        while True:
            yield from source.skip(SPACE + ",")
            if (yield from self._closes(close)):
                self._emit("}")
                return
            key = yield from self._key(schema, seen, positional=bracket == "(")
            part = schema.of(key) if schema is not None else None
            comma = ", " if seen else ""
            seen.append(key)
            yield from self.value(part, f'{comma}"{json_text(key)}": ', close, depth + 1)

    def value(self, schema: ToolSchema | None, lead: str = "", close: str = "}", depth: int = 0) -> Steps[None]:
        """Whatever comes next, in something that `close` ends."""
        source, mark = self._source, self._style.mark
        yield from source.skip()
        if mark and (yield from source.accept(mark)):
            yield from self._marked_string(lead)
            return
        next_one = yield from source.peek()
        if next_one == "{":
            source.take(1)
            yield from self.members(schema, "{", lead, depth)
        elif next_one == "[":
            source.take(1)
            yield from self._list(schema, lead, depth)
        elif next_one in ('"', "'") and next_one:
            source.take(1)
            yield from self._string(next_one, lead)
        else:
            yield from self._word(schema, lead, close)

    def _closes(self, close: str) -> Steps[bool]:
        """Whether what is open ends here: by `close`, which is taken, or by what ends everything."""
        source = self._source
        next_one = yield from source.peek()
        if next_one == close:
            source.take(1)
            return True
        if not next_one:
            if source.cut:
                raise Cut
            return True
        if next_one in "}])":
            # The bracket of something else.
            raise Broken
        return (yield from source.starts(*self._style.ends))

    def _key(self, schema: ToolSchema | None, seen: list[str], positional: bool) -> Steps[str]:
        """Its colon is taken too."""
        source, mark = self._source, self._style.mark
        key: list[str] = []
        reader = LooseJson(source, self._style, key.append)
        text = ""
        if positional and (yield from self._is_value()):
            return _next_name(schema, seen)
        # Bare names may hold whatever a schema names.
        if self._style.bare and (named := (yield from source.accept(*_with_colons(schema)))):
            return named[:-1]
        if mark and (yield from source.accept(mark)):
            yield from reader._marked_string("")
        elif (quote := (yield from source.peek())) and quote in "\"'":
            source.take(1)
            yield from reader._string(quote, "")
        else:
            while (next_one := (yield from source.peek())) and next_one not in ":={}[](),\"'" + SPACE:
                if "\ud800" <= next_one <= "\udfff" or len(text) > _LONGEST_KEY:
                    raise Broken
                text += source.take(1)
            if not text:
                raise Broken
        yield from source.skip()
        if (yield from source.accept(":", "=")):
            return str(json.loads("".join(key))) if key else text
        if not (yield from source.peek()) and source.cut:
            raise Cut
        raise Broken

    def _is_value(self) -> Steps[bool]:
        """Whether a value stands where a name might: not a word to which something is assigned."""
        source = self._source
        while True:
            unread = source.unread
            word = _NAME.match(unread)
            end = word.end() if word else 0
            if end < len(unread) or source.ended:
                return unread[end : end + 1] not in (":", "=")
            yield

    def _list(self, schema: ToolSchema | None, lead: str, depth: int) -> Steps[None]:
        if depth > _DEEPEST:
            raise Broken
        items = schema.items if schema is not None else None
        self._emit(lead + "[")
        first = True
        while True:
            yield from self._source.skip(SPACE + ",")
            if (yield from self._closes("]")):
                self._emit("]")
                return
            yield from self.value(items, "" if first else ", ", "]", depth + 1)
            first = False

    def _marked_string(self, lead: str) -> Steps[None]:
        """Whose opening mark was taken. A marker that ends everything ends it too."""
        self._emit(lead + '"')
        shown = self._source.symbols.shown
        _, stop = yield from self._source.until(self._marked, lambda text: self._emit(json_text(shown(text))))
        if not stop:
            raise Cut if self._source.cut else Broken
        if stop == self._style.mark:
            self._source.take(len(stop))
        self._emit('"')

    def _string(self, quote: str, lead: str) -> Steps[None]:
        """Whose opening quote was taken."""
        source, plain = self._source, _PLAIN[quote]
        self._emit(lead + '"')
        while (yield from source.more()):
            if run := plain.match(source.unread):
                text = source.take(run.end())
                self._emit(text.replace('"', '\\"') if quote == "'" else text)
                continue
            character = source.take(1)
            if character == quote:
                self._emit('"')
                return
            if character == "\\":
                self._emit((yield from self._escape()))
            elif source.symbols.hides(character):
                raise Broken
            else:
                self._emit(json_text(source.symbols.shown(character)))
        raise Cut if source.cut else Broken

    def _escape(self) -> Steps[str]:
        """What JSON writes for the escape whose backslash was taken."""
        source = self._source
        character = yield from source.peek()
        if character in _ESCAPES and character:
            source.take(1)
            return _ESCAPES[character]
        if not character and source.cut:
            raise Cut
        if character != "u":
            return "\\\\"
        source.take(1)
        code = yield from self._hex()
        if code is None:
            return "\\\\u"
        if not 0xD800 <= code < 0xE000:
            return f"\\u{code:04x}"
        if code < 0xDC00 and (yield from source.accept("\\u")):
            low = yield from self._hex()
            if low is not None and 0xDC00 <= low < 0xE000:
                return f"\\u{code:04x}\\u{low:04x}"
            return "\\ufffd" + ("\\\\u" if low is None else "\\ufffd" if 0xD800 <= low < 0xE000 else f"\\u{low:04x}")
        if source.cut and source.unread in ("", "\\"):
            raise Cut
        # Half of a pair is no character, and no reader takes it.
        return "\\ufffd"

    def _hex(self) -> Steps[int | None]:
        source = self._source
        while len(source.unread) < 4 and not source.ended and re.fullmatch(r"[0-9a-fA-F]*", source.unread):
            yield
        if len(source.unread) < 4 and source.cut:
            raise Cut
        return int(source.take(4), 16) if _HEX.match(source.unread) else None

    def _word(self, schema: ToolSchema | None, lead: str, close: str) -> Steps[None]:
        """A value without quotes."""
        source = self._source
        word = ""
        while next_one := (yield from source.peek()):
            if next_one == close or (yield from source.starts(*self._style.ends)):
                break
            if next_one == "," and (not self._style.bare or close == "]" or (yield from self._ends_word())):
                break
            if not self._style.bare and next_one in SPACE + "{}[]\"'":
                break
            word += source.symbols.shown(source.take(1))
        else:
            if source.cut:
                raise Cut
        word = word.strip()
        value = scalar(word)
        if not word or (value is None and not self._style.bare):
            raise Broken
        if value is None or (schema is not None and "string" in schema.types):
            value = typed(word, schema if value is not None else None)
        self._emit(lead + value)

    def _ends_word(self) -> Steps[bool]:
        """Whether the comma that comes next is behind the word and not in it."""
        source = self._source
        undecided = re.compile(r",\s*[^\s,:={}()\[\]]{0,64}\s*")
        while True:
            unread = source.unread
            if self._next.match(unread):
                return True
            if source.ended or not undecided.fullmatch(unread):
                return False
            yield


def _with_colons(schema: ToolSchema | None) -> list[str]:
    return [] if schema is None else [name + ":" for name in schema.names if name]


def _next_name(schema: ToolSchema | None, seen: list[str]) -> str:
    """The parameter that a value without a name is for."""
    name = next((name for name in ([] if schema is None else schema.names) if name not in seen), None)
    if name is None:
        raise Broken
    return name
