"""OpenAI chat messages -> frozen `Message`s.

Written by hand: errors are exact, and thousands of messages parse in milliseconds.
Keys that mean nothing here (name, tool_call_id, ...) are dropped, and named to the client like fields that are in no
table. HTTP process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.api.wire import shown
from server.chat.parts import Message, Role
from server.errors import InvalidRequest, UnsupportedField

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
# Parts that hold something other than text. Their URLs and data are never looked at.
_OTHER_PARTS = ("image_url", "input_image", "image", "input_audio", "audio_url", "video_url", "file", "input_file")
_TOOL_KEYS = ("tool_calls", "function_call")
# A hint to cache a prefix; here prefixes are kept without being asked for.
_ACCEPTED = "cache_control"
_KEYS = frozenset({"role", "content", *_TOOL_KEYS, "audio", _ACCEPTED})


def conversation_messages(raw: list[Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages, and the names of what was dropped from them, for `x-configi-ignored`.

    A key of one message is named with its place, `messages.3.name`; one of several messages is named once for all of
    them, `messages.name`.
    """
    dropped: dict[str, int | None] = {}
    messages = []
    for index, item in enumerate(raw):
        messages.append(_message(item, f"messages.{index}"))
        for key in _dropped_keys(item):
            dropped[key] = index if dropped.get(key, index) == index else None
    names = (f"messages.{key}" if index is None else f"messages.{index}.{key}" for key, index in dropped.items())
    return tuple(messages), tuple(names)


def _dropped_keys(item: dict[str, Any]) -> Iterator[str]:
    """Of a message that has been read. Null means absent, as everywhere."""
    for key, value in item.items():
        if key not in _KEYS and value is not None:
            yield key
    content = item.get("content")
    for part in content if isinstance(content, list) else ():
        known = ("type", part["type"], _ACCEPTED)
        for key, value in part.items():
            if key not in known and value is not None:
                yield f"content.{key}"


def _message(item: Any, where: str) -> Message:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
    role = _role(item.get("role"), f"{where}.role")
    for key in _TOOL_KEYS:
        if item.get(key):
            raise UnsupportedField(f"{where}.{key} is not supported: tools are not built yet.", param=f"{where}.{key}")
    if item.get("audio"):
        raise UnsupportedField(f"{where}.audio is not supported: messages are text.", param=f"{where}.audio")
    return Message.plain(role, _content(item.get("content"), role, f"{where}.content"))


def _role(role: Any, where: str) -> Role:
    if isinstance(role, str):
        if role in _ROLES:
            return _ROLES[role]
        if role == "function":
            raise UnsupportedField(f"{where} function is not supported: tools are not built yet.", param=where)
    raise InvalidRequest(f"{where} must be one of {', '.join(_ROLES)}, not {shown(role)}.", param=where)


def _content(content: Any, role: Role, where: str) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part, f"{where}.{index}") for index, part in enumerate(content))
    if content is None:
        if role == "assistant":
            return ""
        raise InvalidRequest(f"{where} is required for this role.", param=where)
    raise InvalidRequest(f"{where} must be a string or a list of parts, not {shown(content)}.", param=where)


def _part(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(part)}.", param=where)
    kind = part.get("type")
    if kind == "text":
        text = part.get("text")
        if isinstance(text, str):
            return text
        raise InvalidRequest(f"{where}.text must be a string, not {shown(text)}.", param=f"{where}.text")
    # An assistant's refusal, sent back to us: what it said.
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if kind in _OTHER_PARTS:
        raise UnsupportedField(f"{where} is of type {kind}, which is not supported: content is text.", param=where)
    raise InvalidRequest(f"{where}.type must be text, not {shown(kind)}.", param=f"{where}.type")
