"""The shape that the text of an answer must have, as a client asks for it; `chat/grammar` makes a grammar of it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class AnyJson(msgspec.Struct, frozen=True, tag=True):
    """A JSON object, of whatever content."""

    param: str = "response_format"


class JsonSchema(msgspec.Struct, frozen=True, tag=True):
    """JSON that satisfies `schema`. `strict`: a keyword that cannot be enforced is an error; else one that only
    narrows a value is skipped and named in the log. `param`: where in the request it stands."""

    schema: dict[str, Any] | bool
    strict: bool = True
    param: str = "response_format"


class Regex(msgspec.Struct, frozen=True, tag=True):
    pattern: str
    param: str = "structured_outputs.regex"


class OneOf(msgspec.Struct, frozen=True, tag=True):
    """One of `texts`, word for word."""

    texts: tuple[str, ...]
    param: str = "structured_outputs.choice"


class GrammarText(msgspec.Struct, frozen=True, tag=True):
    """A grammar in the client's own words: GBNF as llama.cpp writes it, or Lark as llguidance reads it."""

    text: str
    dialect: Literal["gbnf", "lark", "auto"] = "auto"
    param: str = "grammar"


class StructuralTag(msgspec.Struct, frozen=True, tag=True):
    """vLLM's structural_tag: free text in which each `begin` opens JSON of its schema, up to its `end`."""

    tags: tuple[tuple[str, dict[str, Any], str], ...]
    triggers: tuple[str, ...] = ()
    param: str = "structured_outputs.structural_tag"


Shape = AnyJson | JsonSchema | Regex | OneOf | GrammarText | StructuralTag
