"""The quantized stream begins with what the built model's embedding gives."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx_lm import load

from quantize.build.build import build
from quantize.calibrate.calibration import open_source
from quantize.calibrate.quantized_so_far import QuantizedSoFar
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.checkpoints import llama, write


def test_tokens_are_embedded_as_by_the_built_model(tmp_path: Path) -> None:
    source = write(tmp_path / "source", *llama())
    checkpoint = open_checkpoint(str(source), HubOptions())
    plan = make_plan(checkpoint, "uniform-4")
    build(checkpoint, plan, tmp_path / "built")
    tokens = mx.array([[1, 5, 3, 5]])
    begun = QuantizedSoFar(open_source(str(source), HubOptions()), plan).make(None)
    built, _ = load(str(tmp_path / "built"))
    built.set_dtype(mx.float32)
    assert mx.array_equal(begun.model.embed_tokens(tokens), built.model.embed_tokens(tokens)).item()
