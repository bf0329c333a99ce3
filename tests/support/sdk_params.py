"""What an SDK's types allow: of each typed dict of its parameters, the least that is valid, and what differs from it.

The newest version of an SDK knows fields and members before anybody has sent them here.
"""

from __future__ import annotations

import collections.abc
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal, Required, get_args, get_origin, get_type_hints

# Strings that must fit to another place of a request, or look like something.
_VALUES = {
    "name": "weather", "model": "default", "arguments": "{}", "call_id": "c1", "tool_use_id": "c1", "id": "c1",
    "tool_call_id": "c1", "url": "https://example.org/x", "instructions": "Is it so?",
}  # fmt: skip
_DEEPEST = 12


def fields(of: Any) -> dict[str, Any]:
    return get_type_hints(of, include_extras=True)


def members(of: Any) -> list[Any]:
    """Of a union, None left out; one that is none is its only member."""
    of = _bare(of)
    if get_origin(of) in (typing.Union, types.UnionType):
        return [inner for member in get_args(of) if member is not type(None) for inner in members(member)]
    return [of]


def item(of: Any) -> Any:
    """What a list holds."""
    for member in members(of):
        if _is_list(member):
            return get_args(member)[0]
    raise TypeError(f"{of} is no list")


def examples(of: Any, field: str = "", depth: int = 1) -> Iterator[Any]:
    """The least valid values of each member of a type, then with each field that may be absent, `depth` levels deep."""
    for member in members(of):
        if get_origin(member) is Literal:
            yield from get_args(member)
        elif not _is_dict(member):
            yield least(member, field)
        else:
            base = least(member)
            yield base
            for name, kind in fields(member).items() if depth else ():
                for value in examples(kind, name, depth - 1):
                    if base.get(name) != value:
                        yield {**base, name: value}


def least(of: Any, field: str = "", depth: int = 0) -> Any:
    """One valid value, with nothing that may be absent. Text rather than images and files where both are possible."""
    of = min(members(of), key=lambda member: any(word in str(member) for word in ("Image", "File", "Audio")))
    if depth > _DEEPEST:
        return None
    if _is_dict(of):
        hints = fields(of)
        return {name: least(kind, name, depth + 1) for name, kind in hints.items() if _is_required(of, kind)}
    if get_origin(of) is Literal:
        return get_args(of)[0]
    if _is_list(of):
        return [least(get_args(of)[0], field, depth + 1)]
    if of is str:
        return _VALUES.get(field, "abc")
    return {bool: True, int: 1, float: 0.5}.get(of, {})


def _bare(of: Any) -> Any:
    while str(get_origin(of)).endswith(("Required", "Annotated")):
        of = get_args(of)[0]
    return of


def _is_dict(of: Any) -> bool:
    """A typed dict, of `typing` or of what older Pythons have in its place."""
    return hasattr(of, "__total__")


def _is_required(of: Any, kind: Any) -> bool:
    """Where annotations are strings, `__required_keys__` does not see what they say."""
    return get_origin(kind) is Required or of.__total__


def _is_list(of: Any) -> bool:
    origin = get_origin(of)
    lists = (list, tuple, collections.abc.Iterable, collections.abc.Sequence)
    return origin in lists or getattr(origin, "__name__", "") == "SequenceNotStr"
