"""OpenAI chat messages -> frozen `Message`s.

Written by hand: errors are exact, and thousands of messages parse in milliseconds. Keys that mean nothing here are
dropped, and named to the client like fields that are in no table. HTTP process.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from server.api.openai.content import ACCEPTED_KEY, ContentRules, content_parts, dropped_keys, images_part
from server.api.tool_checks import arguments_text
from server.api.wire import shown
from server.chat.parts import Message, Part, ReasoningPart, Role, TextPart, ToolCallPart, ToolResultPart
from server.errors import InvalidRequest, UnsupportedField

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# What clients send back of an answer, whatever they got it from; they are one thing.
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# Both say that a last message is to be continued, as it always is.
_PREFILL_KEYS = ("prefix", "partial")
_KEYS = frozenset({"role", "content", "images", "audio", ACCEPTED_KEY})
_KEYS_OF: dict[str, frozenset[str]] = {
    "assistant": frozenset({"tool_calls", "function_call", "refusal", *_REASONING_KEYS, *_PREFILL_KEYS}),
    "tool": frozenset({"tool_call_id", "name"}),
    "function": frozenset({"name"}),
}
_CALL_KEYS = frozenset({"id", "type", "function", "index"})


def conversation_messages(
    raw: list[Any], rules: ContentRules | None = None
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The messages, and the names of what was dropped from them, for `x-configi-ignored`.

    A key of one message is named with its place, `messages.3.name`; one of several messages is named once for all of
    them, `messages.name`.
    """
    reader = _Reader(rules or ContentRules())
    dropped: dict[str, int | None] = {}
    messages = []
    for index, item in enumerate(raw):
        messages.append(reader.message(item, index))
        for key in _dropped_keys(item):
            dropped[key] = index if dropped.get(key, index) == index else None
    names = (f"messages.{key}" if index is None else f"messages.{index}.{key}" for key, index in dropped.items())
    return tuple(messages), tuple(names)


def _dropped_keys(item: dict[str, Any]) -> Iterator[str]:
    """Of a message that has been read. Null means absent, as everywhere."""
    known = _KEYS | _KEYS_OF.get(item["role"], frozenset())
    for key, value in item.items():
        if key not in known and value is not None:
            yield key
    yield from (f"content.{key}" for key in dropped_keys(item.get("content")))
    calls = item.get("tool_calls") if item["role"] == "assistant" else None
    for call in calls or ():
        yield from (f"tool_calls.{key}" for key, value in call.items() if key not in _CALL_KEYS and value is not None)


class _Reader:
    """Reads messages in their order, and remembers the calls: a result is told whose it is."""

    def __init__(self, rules: ContentRules) -> None:
        self._rules = rules
        # By the id of a call its tool, and by a tool its last call.
        self._names: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        # In the order in which they were made.
        self._unanswered: dict[str, None] = {}

    def message(self, item: Any, index: int) -> Message:
        where = f"messages.{index}"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
        said = item.get("role")
        if not isinstance(said, str) or said not in _ROLES:
            roles = ", ".join(_ROLES)
            raise InvalidRequest(f"{where}.role must be one of {roles}, not {shown(said)}.", param=f"{where}.role")
        if item.get("audio"):
            raise UnsupportedField(f"{where}.audio is not supported: messages are text.", param=f"{where}.audio")
        role = _ROLES[said]
        content = content_parts(item.get("content"), self._rules, f"{where}.content", thoughts=role == "assistant")
        content += images_part(item.get("images"), self._rules, f"{where}.images")
        if role == "assistant":
            calls = self._calls(item, index)
            return Message(role, (*_reasoning(item, where), *content, *_refusal(item, content), *calls))
        if role == "tool":
            return Message(role, (self._result(item, content, where),))
        return Message(role, content)

    def _calls(self, item: dict[str, Any], place: int) -> Iterator[ToolCallPart]:
        """A call without an id gets one from its place, so that it is the same at every turn."""
        calls, where = item.get("tool_calls") or [], f"messages.{place}.tool_calls"
        if not isinstance(calls, list):
            raise InvalidRequest(f"{where} must be a list, not {shown(calls)}.", param=where)
        for index, call in enumerate(calls):
            yield self._known(_call(call, f"call_{place}_{index}", f"{where}.{index}"))
        if item.get("function_call"):
            yield self._known(_function(item["function_call"], f"call_{place}", f"messages.{place}.function_call"))

    def _known(self, call: ToolCallPart) -> ToolCallPart:
        self._names[call.id] = call.name
        self._ids[call.name] = call.id
        self._unanswered[call.id] = None
        return call

    def _result(self, item: dict[str, Any], content: tuple[Part, ...], where: str) -> ToolResultPart:
        """A result without an id answers the last call of its tool, or the first one that has no answer yet."""
        name, call = item.get("name"), item.get("tool_call_id")
        for key, value in (("name", name), ("tool_call_id", call)):
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"{where}.{key} must be a string, not {shown(value)}.", param=f"{where}.{key}")
        call = call or self._ids.get(name or "") or next(iter(self._unanswered), "")
        self._unanswered.pop(call, None)
        text = "".join(part.text for part in content if isinstance(part, TextPart))
        return ToolResultPart(call, text, name or self._names.get(call))


def _reasoning(item: dict[str, Any], where: str) -> Iterator[ReasoningPart]:
    for key in _REASONING_KEYS:
        value = item.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{where}.{key} must be a string, not {shown(value)}.", param=f"{where}.{key}")
    text = next((item[key] for key in _REASONING_KEYS if item.get(key)), "")
    if text:
        yield ReasoningPart(text)


def _refusal(item: dict[str, Any], content: tuple[Part, ...]) -> Iterator[TextPart]:
    """What the assistant said instead of an answer."""
    refusal = item.get("refusal")
    if not content and isinstance(refusal, str) and refusal:
        yield TextPart(refusal)


def _call(call: Any, id_of_place: str, where: str) -> ToolCallPart:
    if not isinstance(call, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(call)}.", param=where)
    kind, id = call.get("type", "function"), call.get("id")
    if kind not in ("function", None):
        message = f"{where} is of type {shown(kind)}, which is not supported: tools are functions."
        raise UnsupportedField(message, param=f"{where}.type")
    if id is not None and not isinstance(id, str):
        raise InvalidRequest(f"{where}.id must be a string, not {shown(id)}.", param=f"{where}.id")
    return _function(call.get("function"), id or id_of_place, f"{where}.function")


def _function(function: Any, id: str, where: str) -> ToolCallPart:
    if not isinstance(function, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(function)}.", param=where)
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where}.name must be a name, not {shown(name)}.", param=f"{where}.name")
    return ToolCallPart(id, name, arguments_text(function.get("arguments"), f"{where}.arguments"))
