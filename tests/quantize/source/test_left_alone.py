"""Matrices that mlx-lm computes with unquantized are kept: a model in which they were not would not run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from quantize.build.build import build
from quantize.plan.plan import Plan, make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.left_alone import left_alone
from quantize.source.mlx_model import empty_model
from quantize.source.sources import open_checkpoint
from tests.support import architectures
from tests.support.checkpoints import write
from tests.support.commands import configi
from tests.support.hub_families import on_the_hub
from tests.support.tiny_model import VOCAB_SIZE

# Their heads multiply by the embedding's weight itself, in mlx-lm 0.32.2.
BY_THE_WEIGHT = ("llama4_text", "seed_oss")
EMBEDDING = "model.embed_tokens"


def config_of(family: str, *, tied: bool) -> dict[str, Any]:
    numbers = {"vocab_size": VOCAB_SIZE, "torch_dtype": "bfloat16", "tie_word_embeddings": tied}
    return architectures.config_of(family) | numbers


def source_of(folder: Path, family: str, *, tied: bool) -> Path:
    return write(folder / "source", *on_the_hub(config_of(family, tied=tied)))


def planned_and_built(source: Path, folder: Path, policy: str) -> tuple[Plan, Path]:
    checkpoint = open_checkpoint(str(source), HubOptions())
    plan = make_plan(checkpoint, policy)
    return plan, build(checkpoint, plan, folder)


def generates(folder: Path) -> None:
    """In stock mlx-lm."""
    steps = list(generate_step(mx.array([5, 9, 40]), load_model(folder)[0], max_tokens=3))
    assert len(steps) == 3
    assert all(mx.isfinite(logprobs).all() for _, logprobs in steps)


@pytest.mark.parametrize("family", BY_THE_WEIGHT)
def test_a_tied_embedding_that_is_multiplied_by_is_kept_and_the_user_is_told(family: str, tmp_path: Path) -> None:
    source = source_of(tmp_path, family, tied=True)
    plan, folder = planned_and_built(source, tmp_path / "built", "uniform-4")
    assert plan.kept_modules == [EMBEDDING]
    assert json.loads((folder / "config.json").read_text())["quantization"][EMBEDDING] is False
    generates(folder)
    told = f"{EMBEDDING}.weight: kept; mlx-lm computes with it unquantized"
    assert f"* {told}\n" in (folder / "README.md").read_text()
    assert told in configi("plan", str(source), "--policy", "uniform-4").stdout


@pytest.mark.parametrize("family", BY_THE_WEIGHT)
def test_an_embedding_beside_a_head_is_quantized(family: str, tmp_path: Path) -> None:
    plan, folder = planned_and_built(source_of(tmp_path, family, tied=False), tmp_path / "built", "uniform-4")
    assert plan.kept_modules == []
    generates(folder)


@pytest.mark.parametrize("stated", [True, None])
def test_a_tied_minicpm_gets_the_head_that_mlx_lm_makes_of_its_embedding(stated: bool | None, tmp_path: Path) -> None:
    """Told that they are tied, mlx-lm has no place for that head, and does not scale what it multiplies."""
    source = source_of(tmp_path, "minicpm", tied=True)
    config = json.loads((source / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (source / "config.json").write_text(json.dumps(config))
    theirs = load_model(source)[0]
    config["tie_word_embeddings"] = stated
    (source / "config.json").write_text(json.dumps(config))
    _, kept = planned_and_built(source, tmp_path / "kept", "source")
    tokens = mx.array([[5, 9, 40]])
    assert mx.array_equal(load_model(kept)[0](tokens), theirs(tokens))
    plan, folder = planned_and_built(source, tmp_path / "built", "uniform-4")
    assert plan.kept_modules == []
    generates(folder)


# The stand-in for what olmo imports would stay for all tests after.
@pytest.mark.parametrize("name", sorted(set(architectures.names()) - set(architectures.UNTRIED) - {"olmo"}))
def test_in_every_architecture_a_tied_embedding_can_be_quantized_or_is_left_alone(name: str) -> None:
    config = architectures.config_of(name)
    for level in (config, config.get("text_config")):
        if isinstance(level, dict):
            level["tie_word_embeddings"] = True
    if not runs(config, frozenset()):
        pytest.skip("mlx-lm does not run it here, or not tied")
    model = empty_model(config)
    by_choice = getattr(model, "quant_predicate", lambda path, module: True)
    embeddings = {
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.weight.shape[-1] % 32 == 0 and by_choice(path, module)
    }
    broken = {path for path in embeddings if not runs(config, frozenset((path,)))}
    assert broken == embeddings & left_alone(config)


def runs(config: dict[str, Any], quantized: frozenset[str]) -> bool:
    """Whether mlx-lm's model, with those modules quantized, takes two tokens."""
    model = empty_model(config)
    nn.quantize(model, 32, 4, class_predicate=lambda path, module: path in quantized)
    model.eval()
    try:
        mx.eval(model(mx.array([[0, 1]]), cache=make_prompt_cache(model)))
    except (ValueError, RuntimeError, AttributeError, TypeError):
        return False
    return True
