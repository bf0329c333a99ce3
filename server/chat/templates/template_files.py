"""The chat templates of a model folder, by name, as transformers finds them. Text process.

chat_template.jinja and the files of additional_chat_templates/ come before what tokenizer_config.json has: a template,
an object of named ones, or a list of them. The oldest place is chat_template.json, which processors of images wrote.
"""

from __future__ import annotations

from pathlib import Path

from server.chat.model_files import read_object
from server.errors import ModelUnavailable

DEFAULT = "default"
# Some models have another one for conversations with tools.
TOOL_USE = "tool_use"
_FILE = "chat_template.jinja"
_MORE = "additional_chat_templates"


def template_sources(folder: Path) -> dict[str, str]:
    """Empty for a model without any."""
    files = {file.stem: _text(file) for file in sorted((folder / _MORE).glob("*.jinja"))}
    if (folder / _FILE).exists():
        files = {DEFAULT: _text(folder / _FILE)} | files
    return files or _written_in(folder, "tokenizer_config.json") or _written_in(folder, "chat_template.json")


def _written_in(folder: Path, name: str) -> dict[str, str]:
    value = read_object(folder, name).get("chat_template")
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    named = value if isinstance(value, dict) else {DEFAULT: value}
    return {str(key): source for key, source in named.items() if isinstance(source, str)}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable(f"The model's {file.name} cannot be read.") from error
