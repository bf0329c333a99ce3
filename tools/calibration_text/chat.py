"""The hand-written conversations of chat.txt: `>` is the user, `<` the assistant, `!` the system; blank lines part them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_ROLES = {">": "user", "<": "assistant", "!": "system"}


def conversations() -> list[dict[str, Any]]:
    text = Path(__file__).with_name("chat.txt").read_text(encoding="utf-8")
    return [{"messages": [_message(line) for line in block.splitlines()]} for block in text.strip().split("\n\n")]


def _message(line: str) -> dict[str, str]:
    return {"role": _ROLES[line[0]], "content": line[2:].replace("\\n", "\n")}
