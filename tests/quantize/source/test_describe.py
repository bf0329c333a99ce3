"""For how many tokens a model was made: of configs as they are published, with the numbers of their makers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlx_lm.models import bailing_moe_v3, gemma4_text
from transformers import AutoConfig

from quantize.folder.context import stated_context
from quantize.source.describe import context_length
from tests.support.running import ROOT

Config = dict[str, Any]


def llama(longest: int | None, rope: Config | None, **more: Any) -> Config:
    stated = {} if longest is None else {"max_position_embeddings": longest}
    return {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rope_scaling": rope} | stated | more


def gemma3(**text: Any) -> Config:
    return {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "hidden_size": 64} | text}


LONG = {"short_factor": [1.0] * 8, "long_factor": [1.0] * 8}
PUBLISHED: dict[str, tuple[Config, int]] = {
    "stated": (llama(4096, None), 4096),
    "linear": (llama(4096, {"type": "linear", "factor": 4.0}), 16384),
    "linear, the new spelling": (llama(4096, {"rope_type": "linear", "factor": 2.5}), 10240),
    "dynamic": (llama(2048, {"type": "dynamic", "factor": 8.0}), 16384),
    "yarn as a user adds it to Qwen 3": (
        {"model_type": "qwen3", "max_position_embeddings": 40960,
         "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
        131072,
    ),
    "yarn without its original": (llama(4096, {"type": "yarn", "factor": 4.0}), 16384),
    "yarn that is counted in, as in gpt-oss": (
        llama(131072, {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}), 131072,
    ),
    "DeepSeek": (
        {"model_type": "deepseek_v3", "max_position_embeddings": 163840,
         "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}},
        163840,
    ),
    "Llama 3.1": (
        llama(131072, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": 8192}),
        131072,
    ),
    "Phi 3, 128k": (
        {"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
         "rope_scaling": LONG | {"type": "longrope"}},
        131072,
    ),
    "Phi 3, by its old name": (
        {"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
         "rope_scaling": LONG | {"type": "su"}},
        131072,
    ),
    "Gemma 3, 4B": (gemma3(rope_scaling={"factor": 8.0, "rope_type": "linear"}), 131072),
    "Gemma 3, 4B, spelled out": (
        gemma3(max_position_embeddings=131072, rope_scaling={"factor": 8.0, "rope_type": "linear"}), 131072,
    ),
    "Gemma 3, 1B": ({"model_type": "gemma3_text", "max_position_embeddings": 32768, "rope_scaling": None}, 32768),
    "by layer, as transformers 5 writes it": (
        {"model_type": "gemma3_text", "max_position_embeddings": 131072,
         "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        131072,
    ),
    "GPT-2": ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024),
    "on the upper level": (
        {"model_type": "qwen2_vl", "max_position_embeddings": 32768, "text_config": {"model_type": "qwen2_vl_text"}},
        32768,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_model_has_the_context_of_its_maker(name: str) -> None:
    config, expected = PUBLISHED[name]
    assert (stated_context(config) or context_length(config)) == expected
    # Whether it is read from the file or asked of the class.
    assert context_length(config) == expected


@pytest.mark.parametrize("model_type", ["llama", "gemma3_text", "gemma4_text", "qwen2", "mistral", "phi3", "gpt2"])
def test_what_a_config_leaves_out_is_transformers_default(model_type: str) -> None:
    assert stated_context({"model_type": model_type}) is None
    assert context_length({"model_type": model_type}) == AutoConfig.for_model(model_type).max_position_embeddings


def test_of_types_that_only_mlx_lm_knows_its_arguments_are_asked() -> None:
    with pytest.raises(ValueError, match="bailing_moe_v3"):
        AutoConfig.for_model("bailing_moe_v3")
    config = {"model_type": "bailing_moe_v3"}
    assert context_length(config) == bailing_moe_v3.ModelArgs.from_dict(config).max_position_embeddings == 131072
    assert gemma4_text.ModelArgs.from_dict({"model_type": "gemma4_text"}).max_position_embeddings == 131072


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": ["llama"]},
        {"model_type": "mamba"},
        {"model_type": "no such type"},
        {"model_type": "gemma3_text", "num_hidden_layers": 10**15},
        {"model_type": "../../x"},
        {"model_type": "llama", "max_position_embeddings": "many", "rope_scaling": 7},
        {"model_type": "gemma3", "text_config": {"num_hidden_layers": 1e18}},
    ],
)
def test_what_nothing_says_is_none(config: Config) -> None:
    assert context_length(config) is None


def test_the_worker_prints_one_line_of_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(gemma3()))
    command = [sys.executable, "-m", "quantize.source.describe", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout) == {"context_length": 131072}
