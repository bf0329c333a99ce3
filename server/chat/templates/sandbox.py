"""Where a model's chat template runs: jinja2's immutable sandbox, with every single operation bounded. Text process.

A template is data of a stranger. Nothing is computed when it is compiled (jinja2 folds constants, `7 ** (7 ** 9)` among
them), no operator, filter or method makes something huge at one stroke, and what many small ones add up to is bounded
by the time and memory of the process.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from server.errors import InvalidRequest

# Characters or items that one operation may make, and the largest number that may be an argument.
_MOST_ITEMS = 2**25
_LARGEST_ARGUMENT = 100_000
_MOST_BITS = 4096
_WIDTH = re.compile(r"%[^a-zA-Z%]*\d{5,}")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """With the names that Hugging Face's templates use: tojson, raise_exception, strftime_now, `{% generation %}`."""

    intercepted_binops = frozenset(["*", "**", "%", "+", "//"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], optimized=False
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _result_size(operator, left, right) > _MOST_ITEMS:
            raise SecurityError(f"the result of {operator} is too large")
        return super().call_binop(context, operator, left, right)

    # jinja2 names these parameters so, because what the template passes by name must not meet them.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _check_arguments([*args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Characters, items, or for numbers bits in proportion; 0 where nothing can grow."""
    if operator == "%" and isinstance(left, str):
        return _MOST_ITEMS + 1 if _WIDTH.search(left) else 0
    if operator == "+":
        return _length(left) + _length(right)
    if operator not in ("*", "**"):
        return 0
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        return bits * (_MOST_ITEMS // _MOST_BITS)
    count, items = (left, right) if isinstance(left, int) else (right, left)
    return _length(items) * count if isinstance(count, int) else 0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _check_arguments(arguments: Iterable[Any]) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > _LARGEST_ARGUMENT:
            raise SecurityError("an argument is too large")


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose arguments are looked at; jinja2's marks of what it wants to be passed stay on it."""

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        # The first ones are the environment or context, and the value itself.
        _check_arguments([*args[1:], *kwargs.values()])
        return function(*args, **kwargs)

    return bounded


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's tokens for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes for HTML, which models have not seen in training."""
    pair = (separators[0], separators[1]) if separators else None
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=pair, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise InvalidRequest(str(message), param="messages")


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)
