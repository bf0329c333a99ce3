"""The terms that grammars are written in: the dialect of Lark that llguidance reads. Pure text, no llguidance.

A format's rules are put together from these, so that nothing a client names (a tool, a property, a choice) can break
out of the place that it stands in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Protocol

# Between the tokens of JSON. Without a bound, a model that has lost its way writes spaces up to its last token.
_SPACE = r"[ \t\n\r]{0,32}"
# What a Lark string cannot hold as it is.
_CONTROL = {code: f"\\u{code:04x}" for code in (*range(0x20), 0x7F)}


class Markers(Protocol):
    """What a grammar needs of a vocabulary."""

    def marker(self, text: str) -> int | None:
        """The token that is spelled `text` and that ordinary text never becomes."""
        ...


def literal(text: str) -> str:
    """Exactly `text`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').translate(_CONTROL)
    return f'"{escaped}"'


def marker(vocabulary: Markers, text: str) -> str:
    """The token of the marker `text` where the vocabulary has one, else its spelling."""
    token = vocabulary.marker(text)
    return literal(text) if token is None else f"<[{token}]>"


def choice(texts: Iterable[str]) -> str:
    """One of `texts`, at least one."""
    return f"({' | '.join(map(literal, texts))})"


def regex(pattern: str) -> str:
    """All of `pattern`, in the syntax of Rust's regex; anchors at its ends are allowed and mean nothing."""
    # A slash would end it, and so would a line; a backslash before either is an escape that stays one.
    escaped = re.sub(r"\\.|/|\n|\r", lambda match: _IN_REGEX.get(match[0], match[0]), pattern, flags=re.DOTALL)
    # In a group, since two slashes with nothing between them begin a comment.
    return f"/(?:{escaped})/"


_IN_REGEX = {"/": r"\/", "\n": r"\n", "\r": r"\r", "\\\n": r"\n", "\\\r": r"\r"}


def json_schema(schema: dict[str, Any] | bool, *, lenient: bool = False) -> str:
    """JSON that satisfies `schema`, on one line. `lenient`: keywords that llguidance cannot enforce are skipped, and of
    `oneOf` more than one may hold."""
    options = {"whitespace_pattern": _SPACE, "lenient": lenient, "coerce_one_of": lenient}
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    # Ours take the place of any that the client sent.
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False, separators=(",", ":"))


def any_json(*, lenient: bool = True) -> str:
    """A JSON object of whatever content."""
    return json_schema({"type": "object"}, lenient=lenient)
