"""The input items of a stored response as they are listed: in the form that SDKs read, a page at a time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.api.wire import shown
from server.errors import InvalidRequest

_PAGE = 20
_LONGEST_PAGE = 100


def page(items: list[Any], asked: Mapping[str, str]) -> dict[str, Any]:
    """The newest first unless asked otherwise, as OpenAI lists them. Items that came without an id have their place.

    Raises InvalidRequest for an order, an item or a limit that there is not.
    """
    named = [_listed(item, index) for index, item in enumerate(items)]
    order = asked.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequest(f"order must be asc or desc, not {shown(order)}.", param="order")
    if order == "desc":
        named.reverse()
    after = asked.get("after")
    if after is not None:
        places = [index for index, item in enumerate(named) if item["id"] == after]
        if not places:
            raise InvalidRequest("after names no item of this response.", param="after")
        named = named[places[0] + 1 :]
    limit = asked.get("limit", str(_PAGE))
    if not limit.isdecimal() or not 1 <= int(limit[:4]) <= _LONGEST_PAGE:
        raise InvalidRequest(f"limit must be a whole number from 1 to {_LONGEST_PAGE}.", param="limit")
    shown_items = named[: int(limit)]
    ends = (shown_items[0]["id"], shown_items[-1]["id"]) if shown_items else (None, None)
    return {
        "object": "list",
        "data": shown_items,
        "first_id": ends[0],
        "last_id": ends[1],
        "has_more": len(named) > len(shown_items),
    }


def _listed(item: dict[str, Any], index: int) -> dict[str, Any]:
    """As the client sent it, without its nulls. A text alone is one part, which is how OpenAI gives it back."""
    given = {key: value for key, value in item.items() if value is not None}
    listed = {"id": f"item_{index}", "type": "message", "status": "completed", **given}
    if listed["type"] == "message":
        listed["content"] = _parts(listed.get("content", []), listed.get("role"))
    return listed


def _parts(content: Any, role: Any) -> Any:
    if not isinstance(content, str):
        return content
    if role == "assistant":
        return [{"type": "output_text", "text": content, "annotations": []}]
    return [{"type": "input_text", "text": content}]
