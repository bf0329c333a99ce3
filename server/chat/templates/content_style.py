"""Whether a chat template takes the content of a message as a string or as a list of parts. Pure.

Nothing in a template says so: it is found out by rendering a word that no template has, one role after the other, and
looking for it. A template that takes both gets strings, which leave less to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.chat.parts import Role

PROBE = "configi0probe"
_FILLER = "configi0filler"
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "probe", "arguments": {}}}


def in_parts(content: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}]


def roles_with_parts(render: Callable[[Sequence[Mapping[str, Any]]], str]) -> frozenset[Role]:
    """The roles whose content has to be parts. `render` raises whatever it likes where it refuses."""

    def shows(*messages: dict[str, Any]) -> bool:
        try:
            text = render(messages)
        except Exception:
            return False
        # Parts that were written as they are, in Python's notation or in JSON, were not taken for parts.
        return PROBE in text and "'text'" not in text and '"text"' not in text

    user = _needs_parts(lambda content: shows({"role": "user", "content": content}), False)
    asks = {"role": "user", "content": in_parts(_FILLER) if user else _FILLER}
    calls = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
    about: dict[Role, Callable[[Any], bool]] = {
        "system": lambda content: shows({"role": "system", "content": content}, asks),
        "assistant": lambda content: shows(asks, {"role": "assistant", "content": content}, asks),
        "tool": lambda content: shows(
            asks, calls, {"role": "tool", "content": content, "tool_call_id": _CALL["id"], "name": "probe"}
        ),
    }
    found = {role for role, shown in about.items() if _needs_parts(shown, user)}
    return frozenset(found | {"user"} if user else found)


def _needs_parts(shown: Callable[[Any], bool], otherwise: bool) -> bool:
    """`otherwise`: a role that is not shown either way goes like the user's."""
    if shown(PROBE):
        return False
    return shown(in_parts(PROBE)) or otherwise
