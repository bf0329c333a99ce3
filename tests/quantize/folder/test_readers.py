"""What is built here is read by others: older releases of mlx-lm, and mlx-swift-lm by its rules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantize.build.build import build
from quantize.folder.safetensors_format import read_header
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import gemma4, llama, qwen3_moe, write

SOURCES = {"gemma": gemma4, "qwen": qwen3_moe, "llama": llama}
KINDS = list(SOURCES)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    built = {}
    for kind, source in SOURCES.items():
        checkpoint = open_checkpoint(str(write(folder / f"{kind}-source", *source())), HubOptions())
        built[kind] = build(checkpoint, make_plan(checkpoint, "config-i", shard_bytes=500_000), folder / kind)
    return built


LOAD = """\
import importlib.metadata, json, sys
import mlx.core as mx
from mlx_lm import generate, load
answers = {}
for folder in sys.argv[1:]:
    model, tokenizer = load(folder)
    text = generate(model, tokenizer, "Hello", max_tokens=4)
    logits = model(mx.array([[5, 9, 40]]))
    widths = {path: [m.bits, m.group_size] for path, m in model.named_modules() if hasattr(m, "bits")}
    answers[folder] = {"text": text, "dtype": str(logits.dtype), "widths": widths}
print(json.dumps({"file": load.__code__.co_filename, "answers": answers}))
"""


@pytest.mark.slow
# 0.31.2 is the first release that knows gemma4.
@pytest.mark.parametrize("release", ["0.31.2", "0.31.3", "0.32.0", "0.32.1"])
def test_older_releases_of_mlx_lm_load_it_with_the_same_widths(
    release: str, models: Mapping[str, Path], tmp_path: Path
) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path)]
    subprocess.run([*install, f"mlx-lm=={release}"], check=True)
    command = [sys.executable, "-c", LOAD, *map(str, models.values())]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["file"].startswith(str(tmp_path)), "another release was loaded"
    for folder in models.values():
        answer = said["answers"][str(folder)]
        assert answer["dtype"] == "mlx.core.bfloat16"
        table = json.loads((folder / "config.json").read_text())["quantization"]
        expected = {path: [w["bits"], w["group_size"]] for path, w in table.items() if isinstance(w, dict)}
        assert answer["widths"] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_mlx_swift_lm_reads_every_width(kind: str, models: Mapping[str, Path]) -> None:
    """Its rules, as BaseConfiguration.swift and Load.swift have them."""
    built = models[kind]
    config = json.loads((built / "config.json").read_text())
    default, modules = swift_quantization(config["quantization"])
    shapes = {
        entry.name: entry.shape for file in swift_weight_files(built) for entry in read_header(file).entries.values()
    }
    for name in (name for name in shapes if name.endswith(".scales")):
        path = name.removesuffix(".scales")
        assert path in modules, f"{path} would be read at the default width {default}"
        group_size, bits = modules[path]
        columns = shapes[f"{path}.weight"][-1] * 32 // bits
        assert columns == shapes[name][-1] * group_size, path


def swift_quantization(table: dict[str, Any]) -> tuple[tuple[int, int], dict[str, tuple[int, int]]]:
    """The default and each module's (group size, bits). What Swift's decoder throws on fails."""

    def width(entry: Any) -> tuple[int, int]:
        assert isinstance(entry, dict), entry
        for key in ("group_size", "bits"):
            assert type(entry[key]) is int, entry
        assert entry.get("mode", "affine") in ("affine", "mxfp4", "mxfp8", "nvfp4"), entry
        return entry["group_size"], entry["bits"]

    default = width(table)
    settings = {"group_size", "bits", "mode", "quant_method", "linear_class", "quantization_mode"}
    modules = {}
    for key, value in table.items():
        if key not in settings and not isinstance(value, bool):
            modules[key] = width(value)
    return default, modules


def swift_weight_files(folder: Path) -> list[Path]:
    """Those of the index if all are there, else model*.safetensors."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert all((folder / name).is_file() for name in names)
    return [folder / name for name in names]
