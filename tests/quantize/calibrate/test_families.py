"""Every family of the Hub's layouts is calibrated through mlx-lm's own layers, and all of it that can be."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import mlx_lm
import pytest

from quantize.build.build import build
from quantize.calibrate.calibration import open_source, read_calibration
from quantize.folder.manifest import read_manifest
from quantize.folder.verify import verify
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.hub_families import HUB_FAMILIES, write_hub_family

# One of each way that layers call their matrices is built every time, the rest by `make test-slow`.
ALWAYS = {"deepseek_v3", "llama4"}
CALIBRATED = [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in HUB_FAMILIES]
# Keys of latent attention: a prompt meets their transpose.
ROUNDED = {"deepseek_v3": {"self_attn.embed_q"}}


@pytest.mark.parametrize("family", CALIBRATED)
def test_a_family_is_calibrated(family: str, tmp_path: Path) -> None:
    source = write_hub_family(tmp_path / "source", family)
    data = tmp_path / "data.jsonl"
    sentence = "The river that runs through the city is the Seine. Return the number of the first line that matches. "
    data.write_text("".join(json.dumps({"kind": kind, "text": 2 * sentence}) + "\n" for kind in ("prose", "code")))
    made = read_calibration(data, 256)
    checkpoint = open_checkpoint(str(source), HubOptions())
    plan = make_plan(checkpoint, "uniform-4", calibration=made.identity)
    folder = build(
        checkpoint, plan, tmp_path / "out", calibrate=partial(made.run, open_source(str(source), HubOptions()))
    )
    assert verify(folder) == []
    manifest = read_manifest(folder)
    assert manifest is not None
    within = {
        name.partition(".layers.")[2].partition(".")[2].removesuffix(".weight"): tensor.calibrated
        for name, tensor in manifest.tensors.items()
        if tensor.bits is not None and ".layers." in name
    }
    assert {path for path, calibrated in within.items() if calibrated is None} == ROUNDED.get(family, set())
    assert all(calibrated.worst <= 1 for calibrated in within.values() if calibrated is not None)
    model, tokenizer = mlx_lm.load(str(folder))[:2]
    assert isinstance(mlx_lm.generate(model, tokenizer, "hello", max_tokens=4), str)
