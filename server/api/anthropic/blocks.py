"""Anthropic messages -> frozen `Message`s. Pure. HTTP process.

A user's message that carries tool results is several here: each result is the tool's, the rest is the user's. Blocks of
tools that this server does not run are left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from server.api.fields import unread
from server.api.opaque import opened
from server.api.wire import shown
from server.chat.parts import Message, Part, ReasoningPart, Role, TextPart, ToolCallPart, ToolResultPart
from server.errors import InvalidRequest, UnsupportedField

OMITTED_IMAGE = "[image omitted]"

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
# What Anthropic's own tools did: nothing that the model here could have said or can use.
_FOREIGN_ENDS = ("_tool_result", "_tool_use")
_FOREIGN = (
    "container_upload", "mid_conv_system", "fallback", "compaction", "browser_state", "mcp_tool_listing",
    "tool_reference",
)  # fmt: skip
_MESSAGE_KEYS = ("role", "content", "clear_at")


class Said(NamedTuple):
    """`dropped`: the names of what was left out, for `x-configi-ignored`. `changes`: blocks that add or remove a tool,
    with their places, in their order."""

    messages: tuple[Message, ...]
    dropped: tuple[str, ...]
    changes: tuple[tuple[str, dict[str, Any]], ...]


def conversation(system: Any, messages: list[Any], *, omit_images: bool = False) -> Said:
    """Raises InvalidRequest that names the block."""
    reader = _Reader(omit_images)
    said = [*reader.system(system), *reader.messages(messages)]
    if all(message.role == "system" for message in said):
        # Nothing that is left was said by anybody.
        said.append(Message.plain("user", ""))
    unknown = unread(messages, _MESSAGE_KEYS, "messages")
    return Said(tuple(said), (*reader.dropped, *unknown), tuple(reader.changes))


class _Reader:
    def __init__(self, omit_images: bool) -> None:
        self.dropped: dict[str, None] = {}
        self.changes: list[tuple[str, dict[str, Any]]] = []
        self._omit_images = omit_images
        self._tool_names: dict[str, str] = {}

    def system(self, system: Any) -> Iterator[Message]:
        parts = tuple(self._text_parts(system, "system"))
        if parts:
            yield Message("system", parts)

    def messages(self, raw: list[Any]) -> Iterator[Message]:
        last_user = max((index for index, item in enumerate(raw) if _role(item) == "user"), default=-1)
        for index, item in enumerate(raw):
            where = f"messages.{index}"
            if not isinstance(item, dict):
                raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
            if item.get("clear_at") == "next_user_message" and _role(item) == "system" and index < last_user:
                continue
            yield from self._message(item, where)

    def _message(self, item: dict[str, Any], where: str) -> Iterator[Message]:
        role = _role(item)
        if role is None:
            message = f"{where}.role must be user, assistant or system, not {shown(item.get('role'))}."
            raise InvalidRequest(message, param=f"{where}.role")
        parts: list[Part] = []
        for part in self._parts(item.get("content"), f"{where}.content"):
            if isinstance(part, ToolResultPart):
                yield Message("tool", (part,))
            else:
                parts.append(part)
        if parts or not item.get("content"):
            yield Message(role, tuple(parts))

    def _parts(self, content: Any, where: str) -> Iterator[Part]:
        if content is None:
            return
        if isinstance(content, str):
            yield TextPart(content)
            return
        if not isinstance(content, list):
            raise InvalidRequest(f"{where} must be a string or a list of blocks, not {shown(content)}.", param=where)
        for index, block in enumerate(content):
            if not isinstance(block, dict):
                raise InvalidRequest(
                    f"{where}.{index} must be an object, not {shown(block)}.", param=f"{where}.{index}"
                )
            yield from self._block(block, f"{where}.{index}")

    def _block(self, block: dict[str, Any], where: str) -> Iterator[Part]:
        match block.get("type"):
            case "text":
                yield TextPart(_string(block, "text", where))
            case "thinking":
                yield ReasoningPart(self._thought(block, where))
            case "redacted_thinking":
                self.dropped[f"{where}.redacted_thinking"] = None
            case "tool_use":
                yield self._call(block, where)
            case "tool_result":
                yield self._result(block, where)
            case "image":
                yield self._image(where)
            case "document":
                yield from self._labels(block, ("title", "context"), where)
                yield TextPart(self._document(block.get("source"), where))
            case "search_result":
                yield from self._labels(block, ("title", "source"), where)
                yield from self._text_parts(block.get("content"), f"{where}.content")
            case "tool_addition" | "tool_removal":
                self.changes.append((where, block))
            case str() as kind if kind.endswith(_FOREIGN_ENDS) or kind in _FOREIGN:
                self.dropped[f"content.{kind}"] = None
            case kind:
                raise InvalidRequest(f"{where}.type is {shown(kind)}, which is not known here.", param=f"{where}.type")

    def _thought(self, block: dict[str, Any], where: str) -> str:
        """In clear, else as the signature encloses it: a client that asked for no display has nothing else."""
        thought = _string(block, "thinking", where)
        if thought or not isinstance(block.get("signature"), str):
            return thought
        try:
            return opened(block["signature"], where)
        except InvalidRequest:
            self.dropped[f"{where}.signature"] = None
            return ""

    def _call(self, block: dict[str, Any], where: str) -> ToolCallPart:
        value = {} if block.get("input") is None else block["input"]
        if not isinstance(value, dict):
            raise InvalidRequest(f"{where}.input must be an object, not {shown(value)}.", param=f"{where}.input")
        arguments = json.dumps(value, ensure_ascii=False)
        call = ToolCallPart(_string(block, "id", where), _string(block, "name", where), arguments)
        self._tool_names[call.id] = call.name
        return call

    def _result(self, block: dict[str, Any], where: str) -> ToolResultPart:
        call = _string(block, "tool_use_id", where)
        text = "".join(part.text for part in self._text_parts(block.get("content"), f"{where}.content"))
        if block.get("is_error") is True and not text.lower().startswith("error"):
            text = f"Error: {text}"
        return ToolResultPart(call, text, self._tool_names.get(call))

    def _text_parts(self, content: Any, where: str) -> Iterator[TextPart]:
        for part in self._parts(content, where):
            if not isinstance(part, TextPart):
                raise InvalidRequest(f"{where} must hold text only.", param=where)
            yield part

    def _image(self, where: str) -> TextPart:
        if self._omit_images:
            return TextPart(OMITTED_IMAGE)
        message = f'{where} is an image, and no model here sees images; limits.images = "omit" leaves them out.'
        raise UnsupportedField(message, param=where)

    def _labels(self, block: dict[str, Any], keys: tuple[str, ...], where: str) -> Iterator[TextPart]:
        """What tells the model what it reads: a line each in front of the text."""
        for key in keys:
            if block.get(key):
                yield TextPart(f"{key}: {_string(block, key, where)}\n")

    def _document(self, source: Any, where: str) -> str:
        match source:
            case {"type": "text", "data": str(text)}:
                return text
            case {"type": "content", "content": content}:
                return "".join(part.text for part in self._text_parts(content, f"{where}.source.content"))
        raise UnsupportedField(f"{where} is a document that is not text, which is not supported.", param=where)


def _role(item: Any) -> Role | None:
    asked = item.get("role") if isinstance(item, dict) else None
    return _ROLES.get(asked) if isinstance(asked, str) else None


def _string(item: dict[str, Any], key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{key} must be a string, not {shown(value)}.", param=f"{where}.{key}")
    return value
