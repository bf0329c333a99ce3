"""Input items of the Responses protocol -> frozen `Message`s. Pure. HTTP process.

An agent's history is a list of items, and what the assistant thought, said and called in one turn are several of them:
here they are the parts of one message. Items of tools that this server does not run are left out and named.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from server.api.opaque import encloses, opened
from server.api.tool_checks import arguments_text
from server.api.wire import shown
from server.chat.parts import Message, Part, ReasoningPart, Role, TextPart, ToolCallPart, ToolResultPart
from server.errors import InvalidRequest, UnsupportedField

OMITTED_IMAGE = "[image omitted]"
# What another server summed up only that server can read. Without it the history goes on; it is not to look whole.
OMITTED_SUMMARY = "[what was said before is omitted: its summary cannot be read here]"

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_IMAGES = ("input_image", "image_url", "computer_screenshot")
_FILES = ("input_file", "input_audio")
# What OpenAI's own tools did: nothing that the model here could have said or can use.
_FOREIGN = (
    "web_search_call", "file_search_call", "computer_call", "computer_call_output", "code_interpreter_call",
    "image_generation_call", "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output",
    "apply_patch_call", "apply_patch_call_output", "mcp_call", "mcp_list_tools", "mcp_approval_request",
    "mcp_approval_response", "tool_search_call", "program", "program_output", "agent_message",
    "multi_agent_call", "multi_agent_call_output", "compaction_trigger",
)  # fmt: skip

# They say nothing: see `responses/changes.py`.
_CHANGES = ("configuration_update", "additional_tools", "tool_search_output")


class InputMessages(NamedTuple):
    """`dropped`: the names of what was left out, for `x-configi-ignored`."""

    messages: tuple[Message, ...]
    dropped: tuple[str, ...]


def item_type(item: dict[str, Any]) -> Any:
    """Items that show what they are need not say it: who spoke, or nothing but the id of another item."""
    return item.get("type") or ("message" if "role" in item else "item_reference" if "id" in item else None)


def input_messages(items: list[Any], *, omit_images: bool = False) -> InputMessages:
    """Raises InvalidRequest that names the item."""
    return _Reader(omit_images).read(items)


class _Reader:
    def __init__(self, omit_images: bool) -> None:
        self._omit_images = omit_images
        self._tool_names: dict[str, str] = {}
        # Of calls, in the order in which they were made.
        self._unanswered: dict[str, None] = {}
        self._dropped: dict[str, None] = {}

    def read(self, items: list[Any]) -> InputMessages:
        turns: list[Message] = []
        for index, item in enumerate(items):
            for role, parts in self._item(item, f"input.{index}"):
                if role == "assistant" and turns and turns[-1].role == "assistant":
                    turns[-1] = Message("assistant", turns[-1].parts + parts)
                else:
                    turns.append(Message(role, parts))
        return InputMessages(tuple(turns), tuple(self._dropped))

    def _item(self, item: Any, where: str) -> Iterator[tuple[Role, tuple[Part, ...]]]:
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
        kind = item_type(item)
        match kind:
            case "message":
                role = self._role(item.get("role"), f"{where}.role")
                yield role, tuple(self._content(item.get("content"), f"{where}.content"))
            case "function_call":
                yield (
                    "assistant",
                    (self._call(item, where, arguments_text(item.get("arguments"), f"{where}.arguments")),),
                )
            case "custom_tool_call":
                written = json.dumps({"input": self._string(item, "input", where)}, ensure_ascii=False)
                yield "assistant", (self._call(item, where, written),)
            case "function_call_output" | "custom_tool_call_output":
                yield "tool", (self._result(item, where),)
            case "reasoning":
                yield from self._reasoning(item, where)
            case "compaction" | "context_compaction" | "compaction_summary":
                yield "user", (self._summary(item, where),)
            case str() if kind in _CHANGES:
                return
            case str() if kind in _FOREIGN:
                self._dropped[f"input.{kind}"] = None
            case _:
                raise InvalidRequest(f"{where}.type is {shown(kind)}, which is not known here.", param=f"{where}.type")

    def _role(self, role: Any, where: str) -> Role:
        if isinstance(role, str) and role in _ROLES:
            return _ROLES[role]
        raise InvalidRequest(f"{where} must be one of {', '.join(_ROLES)}, not {shown(role)}.", param=where)

    def _content(self, content: Any, where: str) -> Iterator[TextPart]:
        if content is None:
            return
        if isinstance(content, str):
            yield TextPart(content)
        elif isinstance(content, list):
            for index, part in enumerate(content):
                yield self._part(part, f"{where}.{index}")
        else:
            raise InvalidRequest(f"{where} must be a string or a list of parts, not {shown(content)}.", param=where)

    def _part(self, part: Any, where: str) -> TextPart:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _TEXTS:
            return TextPart(self._string(part, "text", where))
        if kind == "refusal":
            return TextPart(self._string(part, "refusal", where))
        if kind in _IMAGES:
            if self._omit_images:
                return TextPart(OMITTED_IMAGE)
            raise UnsupportedField(
                f'{where} is an image, and no model here sees images; limits.images = "omit" leaves them out.',
                param=where,
            )
        if kind in _FILES:
            raise UnsupportedField(f"{where} is of type {kind}, which is not supported: content is text.", param=where)
        raise InvalidRequest(f"{where} must be a part with a type of text, not {shown(part)}.", param=where)

    def _call(self, item: dict[str, Any], where: str, arguments: str) -> ToolCallPart:
        """A call without the id that results name has its own, or one of its place: the same at every turn."""
        id = self._id_of(item, where) or f"call_{where.rpartition('.')[2]}"
        call = ToolCallPart(id, self._string(item, "name", where), arguments)
        self._tool_names[call.id] = call.name
        self._unanswered[call.id] = None
        return call

    def _id_of(self, item: dict[str, Any], where: str) -> str | None:
        key = "id" if item.get("call_id") is None else "call_id"
        return None if item.get(key) is None else self._string(item, key, where)

    def _result(self, item: dict[str, Any], where: str) -> ToolResultPart:
        """Without the id of a call, of the last one of that tool, or of the first that has no result yet."""
        name = self._string(item, "name", where) if item.get("name") is not None else None
        if item.get("call_id") is not None or (name is None and not self._unanswered):
            call = self._string(item, "call_id", where)
        else:
            of_tool = [id for id, tool in self._tool_names.items() if tool == name]
            call = of_tool[-1] if of_tool else next(iter(self._unanswered), "")
        self._unanswered.pop(call, None)
        text = "".join(part.text for part in self._content(item.get("output"), f"{where}.output"))
        return ToolResultPart(call, text, self._tool_names.get(call, name))

    def _summary(self, item: dict[str, Any], where: str) -> TextPart:
        content = self._string(item, "encrypted_content", where)
        if encloses(content):
            return TextPart(opened(content, where))
        self._dropped[f"{where}.encrypted_content"] = None
        return TextPart(OMITTED_SUMMARY)

    def _reasoning(self, item: dict[str, Any], where: str) -> Iterator[tuple[Role, tuple[Part, ...]]]:
        """What was thought: in clear, else as this server enclosed it, else its summary."""
        texts = [part.text for part in self._content(item.get("content"), f"{where}.content")]
        if not texts and isinstance(item.get("encrypted_content"), str):
            try:
                texts = [opened(item["encrypted_content"], where)]
            except InvalidRequest:
                # Another server's: nobody here can read it, and the conversation goes on without.
                self._dropped[f"{where}.encrypted_content"] = None
        if not texts:
            texts = [part.text for part in self._content(item.get("summary"), f"{where}.summary")]
        if texts:
            yield "assistant", (ReasoningPart("".join(texts)),)

    def _string(self, item: dict[str, Any], key: str, where: str) -> str:
        value = item.get(key)
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}.{key} must be a string, not {shown(value)}.", param=f"{where}.{key}")
        return value
