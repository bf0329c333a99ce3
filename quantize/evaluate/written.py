"""Where an evaluation is written to: a folder of its own, and the README.md of the model's."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from quantize.errors import SourceError
from quantize.evaluate.evaluation import Evaluation, as_json
from quantize.evaluate.plots import draw
from quantize.evaluate.report import markdown
from quantize.files import read_text, replace
from quantize.folder.manifest import File, read_manifest, write_manifest

_CARD = "README.md"
_SECTION = re.compile(r"^## Quality\n.*?(?=^##? |\Z)", re.MULTILINE | re.DOTALL)


def write_report(found: Evaluation, folder: Path, *, plots: bool) -> None:
    """report.json, report.md and, with `plots`, pictures. Raises OSError, and QuantizeError without matplotlib."""
    names = draw(found, folder) if plots else []
    (folder / "report.json").write_text(as_json(found), encoding="utf-8")
    (folder / "report.md").write_text(markdown(found, names), encoding="utf-8")


def put_into_card(folder: Path, section: str) -> None:
    """In place of an earlier `## Quality`, else at the end; the manifest has the new hash. Raises OSError."""
    card = folder / _CARD
    text = read_text(card, SourceError) if card.exists() else f"# {folder.resolve().name}\n"
    kept = _SECTION.sub("", text).rstrip()
    content = f"{kept}\n\n{section}".encode()
    replace(card, content)
    manifest = read_manifest(folder)
    if manifest is not None:
        files = {**manifest.files, _CARD: File(hashlib.sha256(content).hexdigest(), len(content))}
        write_manifest(folder, msgspec.structs.replace(manifest, files=files))
