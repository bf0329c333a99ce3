"""The shape that the text of an answer must have, as a client asks for it; `chat/grammar` makes a grammar of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class AnyJson:
    """A JSON object, of whatever content."""


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that satisfies `schema`. `strict`: a keyword that cannot be enforced is an error, else it is skipped and
    named in the log. `param`: where in the request it stands."""

    schema: dict[str, Any] | bool
    strict: bool = True
    param: str = "response_format"


@dataclass(frozen=True, slots=True)
class Regex:
    pattern: str
    param: str = "structured_outputs.regex"


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of `texts`, word for word."""

    texts: tuple[str, ...]
    param: str = "structured_outputs.choice"


@dataclass(frozen=True, slots=True)
class GrammarText:
    """A grammar in the client's own words: GBNF as llama.cpp writes it, or Lark as llguidance reads it."""

    text: str
    dialect: Literal["gbnf", "lark", "auto"] = "auto"
    param: str = "grammar"


@dataclass(frozen=True, slots=True)
class StructuralTag:
    """vLLM's structural_tag: free text in which each `begin` opens JSON of its schema, up to its `end`."""

    tags: tuple[tuple[str, dict[str, Any], str], ...]
    triggers: tuple[str, ...] = field(default=())
    param: str = "structured_outputs.structural_tag"


Shape = AnyJson | JsonSchema | Regex | OneOf | GrammarText | StructuralTag
