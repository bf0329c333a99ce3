"""Calls and results in a history, put so that the template at hand loses none of them. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from server.chat.parts import Message, Part, ReasoningPart, TextPart, ToolCallPart, ToolResultPart
from server.chat.templates.traits import Traits
from server.chat.templates.turns import Messages
from server.chat.tools import Tool

# For models whose template declares no tools. What stands between the tags is what Hermes models were trained on.
_DECLARATION = """\
# Tools

You may call one or more of these functions. Each is described by one JSON object between <tools> and </tools>:
<tools>
{tools}
</tools>

To call a function, write a JSON object with its name and its arguments between <tool_call> and </tool_call>:
<tool_call>
{{"name": "the name", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""


def arranged(messages: Messages, tools: Sequence[Tool], traits: Traits) -> Messages:
    """The same conversation in messages that the template has room for."""
    messages = _without_orphans(messages)
    if tools and not traits.knows_tools:
        return _declared(tuple(map(_as_text, messages)), tools)
    if not traits.knows_calls:
        return tuple(map(_as_text, messages))
    if traits.holds_results:
        return _with_results(messages)
    return _one_by_one(messages) if traits.one_call else messages


def declaration(tool: Tool) -> dict[str, Any]:
    """As templates read it. A parameter list that is missing is an empty one."""
    parameters = tool.parameters or {"type": "object", "properties": {}}
    function = {"name": tool.name, "description": tool.description, "parameters": parameters}
    return {"type": "function", "function": function}


def _without_orphans(messages: Messages) -> Messages:
    """Results that follow no call are what the user says: templates refuse them, or leave them out."""
    answered = False
    turns = []
    for message in messages:
        if message.role != "tool":
            answered = any(isinstance(part, ToolCallPart) for part in message.parts)
        elif not answered:
            message = Message.plain("user", message.text)
        turns.append(message)
    return tuple(turns)


def _with_results(messages: Messages) -> Messages:
    """Each result in the message with its call, as Gemma 4's own form has it."""
    turns: list[Message] = []
    for message in messages:
        if message.role == "tool" and turns:
            names = {part.id: part.name for part in turns[-1].parts if isinstance(part, ToolCallPart)}
            named = [
                replace(part, name=part.name or names.get(part.call_id)) if isinstance(part, ToolResultPart) else part
                for part in message.parts
            ]
            turns[-1] = replace(turns[-1], parts=(*turns[-1].parts, *named))
        else:
            turns.append(message)
    return tuple(turns)


def _one_by_one(messages: Messages) -> Messages:
    """Each call in a message of its own, with its result behind it."""
    turns: list[Message] = []
    at = 0
    while at < len(messages):
        message = messages[at]
        at += 1
        calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
        if len(calls) < 2:
            turns.append(message)
            continue
        results = []
        while at < len(messages) and messages[at].role == "tool":
            results.append(messages[at])
            at += 1
        rest = tuple(part for part in message.parts if not isinstance(part, ToolCallPart))
        for index, call in enumerate(calls):
            turns.append(replace(message, parts=(*(rest if index == 0 else ()), call)))
            mine = [result for result in results if _answers(result, call)]
            # By order where the ids do not say.
            mine = mine or results[:1]
            turns += mine
            results = [result for result in results if result not in mine]
        turns += results
    return tuple(turns)


def _answers(result: Message, call: ToolCallPart) -> bool:
    return any(isinstance(part, ToolResultPart) and part.call_id == call.id for part in result.parts)


def _as_text(message: Message) -> Message:
    parts: list[Part] = []
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            name = json.dumps(part.name, ensure_ascii=False)
            call = f'<tool_call>\n{{"name": {name}, "arguments": {part.arguments or "{}"}}}\n</tool_call>'
            parts.append(TextPart(call if _is_first(parts) else "\n" + call))
        elif isinstance(part, ToolResultPart):
            parts.append(TextPart(f"<tool_response>\n{part.text}\n</tool_response>"))
        else:
            parts.append(part)
    return Message("user" if message.role == "tool" else message.role, tuple(parts))


def _is_first(parts: list[Part]) -> bool:
    return all(isinstance(part, ReasoningPart) or (isinstance(part, TextPart) and not part.text) for part in parts)


def _declared(messages: Messages, tools: Sequence[Tool]) -> Messages:
    if not tools:
        return messages
    listed = "\n".join(json.dumps(declaration(tool), ensure_ascii=False) for tool in tools)
    text = _DECLARATION.format(tools=listed)
    if messages and messages[0].role == "system":
        first = replace(messages[0], parts=(*messages[0].parts, TextPart("\n\n" + text)))
        return (first, *messages[1:])
    return (Message.plain("system", text), *messages)
