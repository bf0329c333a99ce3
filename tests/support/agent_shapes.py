"""What agents send, without their words: the shape of the requests that follow on each other in one task.

Every text is stored as the lengths of its paragraphs and a few digits of their hashes, and comes back as made-up words:
the same paragraph as the same words, whichever request it is in. So whatever a client changes from one request to the
next changes here, too. Schemas of tools are told by their length.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.support.running import ROOT

SHAPES = ROOT / "tests" / "clients" / "shapes"
_TEXT = (
    "the answer to question is a number house forest river capital message model server token request story about "
    "little old man there was once upon time user assistant helpful system content stream hello world return print"
)
_WORDS = _TEXT.split()
# What a protocol means by them stands in these.
_VERBATIM = {
    "type", "role", "model", "name", "id", "call_id", "tool_call_id", "tool_use_id", "status", "effort", "summary",
    "tool_choice", "include", "phase", "display", "budget_tokens",
    # What this server has enclosed in them, it opens again: the script's own words.
    "signature", "encrypted_content",
}  # fmt: skip
# The line that Claude Code begins with, which the server has to know.
_BILLING = "x-anthropic-billing-header"
_SCHEMAS = ("parameters", "input_schema", "format")
# Beside the conversation only what asks for tools and thoughts.
_KEPT = {"messages", "input", "instructions", "system", "tools", "thinking", "reasoning", "reasoning_effort", "include"}
_MARK = "~"


@dataclass(frozen=True)
class Shape:
    """`bodies`: three requests to `path`, each with what came of the one before."""

    client: str
    api: str
    version: str
    path: str
    bodies: list[dict[str, Any]]

    def asked(self) -> Iterator[dict[str, Any]]:
        """The bodies with made-up words."""
        for body in self.bodies:
            yield _expanded(body)


def record(client: str, api: str, version: str, exchanges: Sequence[dict[str, Any]], task: str) -> None:
    """Keep the shape of the first three requests of `exchanges` that ask for `task` with tools."""
    asked = [(e["path"], json.loads(e["asked"])) for e in exchanges if e["method"] == "POST" and task in e["asked"]]
    asked = [(path, body) for path, body in asked if body.get("tools")][:3]
    bodies = [{key: _shaped(key, value) for key, value in body.items() if key in _KEPT} for _, body in asked]
    shape = Shape(client, api, version, asked[0][0], bodies)
    name = f"{client} {api}".lower().replace(" ", "-")
    (SHAPES / f"{name}.json").write_text(json.dumps(asdict(shape), separators=(",", ":")) + "\n", encoding="utf-8")


def shapes() -> list[Shape]:
    return [Shape(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(SHAPES.glob("*.json"))]


def _shaped(key: str, value: Any) -> Any:
    if key in _VERBATIM:
        return value
    if key == "arguments":
        return json.dumps({"command": "run it"})
    if key == "tools":
        return [_tool(tool) for tool in value]
    if isinstance(value, str) and value.startswith(_BILLING):
        return value
    if isinstance(value, str):
        return {_MARK: " ".join(f"{len(part)}.{_hash(part)}" for part in value.split("\n\n"))}
    if isinstance(value, list):
        return [_shaped("", inner) for inner in value]
    if isinstance(value, dict):
        return {inner: _shaped(inner, of) for inner, of in value.items()}
    return value


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Its names, and one text that is as long as all the rest of it."""
    if isinstance(tool.get("function"), dict):
        return {"type": "function", "function": _tool(tool["function"])}
    if isinstance(tool.get("tools"), list):
        return {"type": tool["type"], "name": tool["name"], "tools": [_tool(inner) for inner in tool["tools"]]}
    kept = {key: value for key, value in tool.items() if key in ("type", "name")}
    rest = json.dumps({key: value for key, value in tool.items() if key not in kept})
    schema = {key: {"type": "object"} for key in _SCHEMAS if key in tool and key != "format"}
    return kept | {"description": {_MARK: f"{len(rest)}.{_hash(rest)}"}} | schema


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:5]


def _expanded(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {_MARK}:
        return "\n\n".join(_words(part) for part in value[_MARK].split(" "))
    if isinstance(value, dict):
        return {key: _expanded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner) for inner in value]
    return value


def _words(part: str) -> str:
    length = int(part.partition(".")[0])
    rng = random.Random(part)
    text = ""
    while len(text) < length:
        text += rng.choice(_WORDS) + " "
    return text[:length]
