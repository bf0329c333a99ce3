"""The input of POST /v1/decisions -> frozen `Message`s. Pure. HTTP process.

Its items are those of the Responses protocol that say something; its parts can be JSON as well, which is read as text.
"""

from __future__ import annotations

import json
from typing import Any

from server.api.openai.items import InputMessages, input_messages, item_type
from server.api.wire import shown
from server.errors import InvalidRequest
from server.settings.types import LimitSettings

_ITEMS = ("message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output")
_KEYS = {
    "message": ("type", "role", "content", "phase"),
    "function_call": ("type", "id", "call_id", "name", "arguments", "namespace", "status"),
    "custom_tool_call": ("type", "id", "call_id", "name", "input", "namespace", "status"),
    "function_call_output": ("type", "id", "call_id", "output", "status"),
    "custom_tool_call_output": ("type", "id", "call_id", "output", "status"),
}


def said(given: str | list[Any], limits: LimitSettings) -> InputMessages:
    """Raises InvalidRequest that names the item."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not items:
        raise InvalidRequest("input must be a string or a list of at least one item.", param="input")
    if len(items) > limits.max_messages:
        raise InvalidRequest(
            f"input has {len(items)} items; at most {limits.max_messages} are possible.", param="input"
        )
    read = [_item(item, f"input.{index}") for index, item in enumerate(items)]
    _check_outputs(read)
    messages, dropped = input_messages(read, omit_images=limits.images == "omit")
    unknown = (
        f"input.{key}"
        for item in read
        for key, value in item.items()
        if value is not None and key not in _KEYS[item_type(item)]
    )
    return InputMessages(messages, tuple(dict.fromkeys((*dropped, *unknown))))


def parts_with_text(content: Any, where: str) -> Any:
    """`content` with its JSON as text. Compact, and in the order of its sender."""
    if not isinstance(content, list):
        return content
    return [_part(part, f"{where}.{index}") for index, part in enumerate(content)]


def _item(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(item)}.", param=where)
    kind = item_type(item)
    if kind not in _ITEMS:
        message = f"{where}.type must be one of {', '.join(_ITEMS)}, not {shown(kind)}."
        raise InvalidRequest(message, param=f"{where}.type")
    key = "content" if kind == "message" else "output"
    if key not in item:
        return item
    return {**item, key: parts_with_text(item[key], f"{where}.{key}")}


def _part(part: Any, where: str) -> Any:
    if not isinstance(part, dict) or part.get("type") != "input_json":
        return part
    data = part.get("data")
    if not isinstance(data, dict) and not (isinstance(data, list) and all(isinstance(row, dict) for row in data)):
        message = f"{where}.data must be an object or a list of objects, not {shown(data)}."
        raise InvalidRequest(message, param=f"{where}.data")
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return {"type": "input_text", "text": text}


def _check_outputs(items: list[dict[str, Any]]) -> None:
    """Each output answers a call before it, of its own kind."""
    calls: set[tuple[str, str]] = set()
    for index, item in enumerate(items):
        kind, call = item_type(item), item.get("call_id")
        if kind in ("function_call", "custom_tool_call") and isinstance(call, str):
            calls.add((kind, call))
        elif kind.endswith("_output") and not (isinstance(call, str) and (kind.removesuffix("_output"), call) in calls):
            where = f"input.{index}.call_id"
            raise InvalidRequest(f"{where} is {shown(call)}, and no call before it has that id.", param=where)
