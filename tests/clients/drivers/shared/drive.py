"""What every driver of a Python SDK shares: what is asked, and how what came of it is told.

A driver runs in an environment of its own, with nothing but its SDK and this file. Its head names the packages that it
needs, the one whose version counts first, and the protocols that it speaks: it is run once for each. It prints one JSON
line for each feature: what came of it, why its SDK does not have it, or the error. `test_sdks.py` says what must come.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

# The server, the key that it wants, the model that it serves, and the protocol that is driven.
BASE, KEY, MODEL, API = (os.environ[name] for name in ("BASE", "KEY", "MODEL", "API"))
V1 = f"{BASE}/v1"

CAPITAL = "What is the capital of France?"
WEATHER = "What is the weather in Paris? Use the tool."
FORM = "Tell me the city and its degrees, as JSON."
TOO_LONG = "too long " * 20_000
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "integer"}},
    "required": ["city", "degrees"],
    "additionalProperties": False,
}
# The parameters of the tool `weather`, and what it tells.
PLACE: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
DEGREES = "18 degrees"

_features: dict[str, Callable[[], Any]] = {}


class Lacks(Exception):
    """The SDK does not have the feature; the message says what it has instead."""


def feature(function: Callable[[], Any]) -> Callable[[], Any]:
    _features[function.__name__] = function
    return function


def refused(call: Callable[[], Any]) -> dict[str, str]:
    """How the SDK words the refusal of `call`."""
    try:
        answer = call()
        if inspect.isawaitable(answer):
            asyncio.run(_waited(answer))
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    raise AssertionError("it was not refused")


async def _waited(answer: Any) -> Any:
    return await answer


def main() -> None:
    """Every feature, one line each."""
    for name, function in _features.items():
        try:
            made = function()
            line = {"value": asyncio.run(_waited(made)) if inspect.isawaitable(made) else made}
        except Lacks as reason:
            line = {"lacks": str(reason)}
        except Exception:
            line = {"failed": traceback.format_exc(limit=-6)}
        # On a line of its own: SDKs print, too.
        print("\n" + json.dumps({"feature": name} | line, default=str), flush=True)
