"""What processes without a tokenizer import of mlx-lm, and that its models need nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlx_lm

LEFT_OUT = {"huggingface_hub", "transformers", "tokenizers"}
START = f"""
import sys
from quantize.mlx_lm_alone import import_mlx_lm_alone
import_mlx_lm_alone()
import server.engine.process
print(*sorted(set(sys.modules) & {LEFT_OUT}))
import huggingface_hub
print(huggingface_hub.hf_hub_download.__name__)
"""


def imported(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_the_engine_starts_without_tokenizers_and_the_hub_which_can_be_imported_later() -> None:
    done = subprocess.run([sys.executable, "-c", START], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "hf_hub_download"]


def test_no_model_of_mlx_lm_needs_what_is_left_out() -> None:
    files = sorted((Path(mlx_lm.__file__).parent / "models").rglob("*.py"))
    users = [file.name for file in files if {name.split(".")[0] for name in imported(file)} & LEFT_OUT]
    assert len(files) > 100, "the test no longer sees mlx-lm's models"
    assert users == []
