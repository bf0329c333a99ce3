"""Request bodies: bytes -> one JSON object that every later step can trust. HTTP process.

The object holds no lone surrogate, no NaN or infinity, no integer beyond 64 bits and no deep nesting. Duplicate
keys: the last one wins.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from server.errors import InvalidRequest
from server.http.json_bounds import check_bounds
from server.http.parser import BodyParser
from server.settings.types import LimitSettings

T = TypeVar("T")

# What is larger, or holds more lists and objects, takes longer to read than the streams that share the event loop
# should wait.
_SMALL_BYTES = 64 * 1024
_SMALL_CONTAINERS = 2000
_INT64_DIGITS = re.compile(rb"\d{19}")
_POSITION = re.compile(r"\(byte (\d+)\)")


async def parsed_body(request: Request, parse: Callable[[bytes], T]) -> T:
    """`parse(body)`: here when that is quick, otherwise where it holds nobody up. See `BodyParser` for what it may be.

    Raises:
        ConfigiError: what `parse` raises.
        ClientDisconnect: the client left before its body was parsed.
    """
    pieces = deque([piece async for piece in request.stream()])
    if sum(map(len, pieces)) <= _SMALL_BYTES:
        raw = b"".join(pieces)
        if raw.count(b"[") + raw.count(b"{") <= _SMALL_CONTAINERS:
            return parse(raw)
        pieces = deque([raw])
    state = request.scope.get("state") or {}
    parser: BodyParser | None = state.get("parser")
    if parser is None:
        # Without the guard nobody else is to be held up.
        return parse(b"".join(pieces))
    return await parser.parse(parse, pieces, state["client"], request.is_disconnected)


def json_object(raw: bytes, limits: LimitSettings) -> dict[str, Any]:
    check_bounds(raw, limits)
    body = _decoded(raw, limits)
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.")
    _check_message_count(body, limits)
    # Cheap bounds first: most bodies have too few brackets to be deep and no long run of digits.
    if raw.count(b"[") + raw.count(b"{") > limits.max_json_depth:
        _check_depth(body, limits)
    if _INT64_DIGITS.search(raw):
        _check_integers(body)
    return body


def _decoded(raw: bytes, limits: LimitSettings) -> object:
    if not raw.strip():
        raise InvalidRequest("The body is empty; it must be a JSON object.")
    if raw.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or raw[:2].count(0) == 1:
        raise InvalidRequest("The body must be UTF-8 without a byte order mark.")
    try:
        return msgspec.json.decode(raw)
    except RecursionError:
        raise _too_deep(limits) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid UTF-8.") from None
    except msgspec.ValidationError:
        raise InvalidRequest("The body holds a number that is out of range.") from None
    except msgspec.DecodeError as error:
        raise InvalidRequest(_malformed(raw, str(error))) from None


def _malformed(raw: bytes, reason: str) -> str:
    if "surrogate" in reason or ("truncated" in reason and _is_whole(raw)):
        return "The body holds half of a surrogate pair (\\ud800 to \\udfff), which is not text."
    if "truncated" in reason:
        return f"The JSON body is cut off: it ends at byte {len(raw)} inside a value."
    position = _POSITION.search(reason)
    at = int(position.group(1)) if position else 0
    if raw[at : at + 3] in (b"NaN", b"Inf") or raw[at - 1 : at + 3] == b"-Inf":
        return f"NaN and Infinity are not JSON numbers (byte {at})."
    return f"The body is not valid JSON at byte {at}."


def _is_whole(raw: bytes) -> bool:
    """msgspec 0.22 calls an escape like \\ud800 before the closing quote "truncated"; the slow parser knows better."""
    try:
        json.loads(raw)
    except (ValueError, RecursionError):
        return False
    return True


def _check_message_count(body: dict[str, Any], limits: LimitSettings) -> None:
    messages = body.get("messages")
    if isinstance(messages, list) and len(messages) > limits.max_messages:
        message = f"messages has {len(messages)} entries; at most {limits.max_messages} are possible."
        raise InvalidRequest(message, param="messages")


def _check_depth(body: dict[str, Any], limits: LimitSettings) -> None:
    level: list[Any] = [body]
    for _ in range(limits.max_json_depth):
        level = [child for parent in level for child in _children(parent) if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep(limits)


def _check_integers(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    while level:
        children = [child for parent in level for child in _children(parent)]
        if any(type(child) is int and not -(2**63) <= child < 2**64 for child in children):
            raise InvalidRequest("The body holds an integer that does not fit in 64 bits.")
        level = [child for child in children if isinstance(child, dict | list)]


def _children(parent: Any) -> Any:
    return parent.values() if isinstance(parent, dict) else parent


def _too_deep(limits: LimitSettings) -> InvalidRequest:
    return InvalidRequest(f"The body is nested deeper than {limits.max_json_depth} levels.")
