"""Gemma 4's first chat template, which its publisher has since put right. Needs nothing but the files.

It writes the result of a tool as a turn of its own, which the model has never seen, and leaves out the reasoning before
a call. The revision that the small models were released with is known byte by byte; its ways are recognized in the
templates of the others.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

from quantize.foreign_json import read_json

# sha256 of the text without space at its ends.
_RELEASED = "55572b8d3c8342044e25874c73fe5234b661fa0a57a57f6ef75b58e03d7d959a"


def stale_template(folder: Path) -> str | None:
    """One sentence, with the sha256 of the template, where it is that one."""
    source = _source(folder).strip()
    digest = hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()
    # It has a form for results, and does not look for the call that a result answers.
    has_its_ways = "<|tool_response>" in source and "tool_call_id" not in source
    if digest != _RELEASED and not has_its_ways:
        return None
    return (
        f"The chat template is one that Gemma 4's publisher has replaced (sha256 {digest[:12]}): it drops reasoning "
        "before a tool call and writes results as no model was trained. Fetch the current chat_template.jinja."
    )


def _source(folder: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    with contextlib.suppress(OSError, ValueError):
        config = read_json((folder / "tokenizer_config.json").read_bytes())
        source = config.get("chat_template") if isinstance(config, dict) else None
        return source if isinstance(source, str) else ""
    return ""
