"""The tokenizer of a checkpoint, from the small files beside its weights."""

from __future__ import annotations

import json
from pathlib import Path

from quantize.forward.tokenizer import tokenizer_of
from tests.support.tiny_model import write_tiny_model


def test_files_in_folders_are_of_it_too(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path)
    files = {name: (model / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    files["additional_chat_templates/tool_use.jinja"] = b"Of tools: {{ messages[0].content }}"
    tokenizer = tokenizer_of(json.loads((model / "config.json").read_text()), files, "the source")
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(asked, chat_template="tool_use", tokenize=False) == "Of tools: Hi"
