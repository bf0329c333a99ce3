"""Describes a model by its folder. Text process."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from server.chat.description import Description
from server.chat.model_files import read_object
from server.chat.templates.template import ChatTemplate
from server.chat.tokenizers.tokenizer import ChatTokenizer


def describe(folder: Path, tokenizer: ChatTokenizer, template: ChatTemplate) -> Description:
    config = read_object(folder, "config.json", required=True)
    file = folder / "config.json"
    return Description(
        architecture=_text(config.get("model_type")) or "unknown",
        weight_bytes=sum(weights.stat().st_size for weights in folder.glob("*.safetensors")),
        bits=_bits(config),
        dtype=_text(config.get("dtype")) or _text(config.get("torch_dtype")),
        tools=template.declares_tools,
        reasoning=template.reasons,
        infill=tokenizer.infill is not None,
        special=tokenizer.special,
        template=template.source,
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        modified=file.stat().st_mtime,
    )


def _bits(config: dict[str, Any]) -> int | None:
    """As MLX writes it: of every weight that has no entry of its own."""
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    return bits if isinstance(bits, int) else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
