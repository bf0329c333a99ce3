"""Writes a tiny but real Gemma 4 model folder: sliding-window layers (whose caches cannot go back), experts, tied
embeddings.

Random float32 weights in the shapes of mlx-lm's own class, the tokenizer of `tiny_model`, and a chat template that,
like Gemma 4's, opens the reply with an empty thought which the history drops.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models import gemma4

from tests.support.tiny_model import VOCAB_SIZE, write_tiny_model

WINDOW = 32

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think></think>' }}
{%- endif %}
"""

_GAIN, _LOUD = 3.0, 20.0

_TEXT: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 32,
    "num_key_value_heads": 2,
    "num_global_key_value_heads": 1,
    "attention_k_eq_v": True,
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "vocab_size": VOCAB_SIZE,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "sliding_window": WINDOW,
    "sliding_window_pattern": 3,
    "use_double_wide_mlp": False,
    "enable_moe_block": True,
    "num_experts": 8,
    "top_k_experts": 2,
    "moe_intermediate_size": 32,
}


def write_sliding_model(folder: Path, *, seed: int = 0, context: int = 4096, **shape: Any) -> Path:
    """Write the model into `folder` and return it. Same arguments, same bytes. `shape`: of its text config."""
    write_tiny_model(folder, context=context)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    text = _TEXT | {"max_position_embeddings": context} | shape
    config = {"model_type": "gemma4", "vocab_size": VOCAB_SIZE, "tie_word_embeddings": True, "text_config": text}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    model = gemma4.Model(gemma4.ModelArgs.from_dict(json.loads(json.dumps(config))))
    key = mx.random.key(seed)
    weights = {}
    for name, value in tree_flatten(model.parameters()):
        key, draw = mx.random.split(key)
        if value.ndim > 1:
            value = mx.random.normal(value.shape, key=draw) * (_GAIN / value.shape[-1] ** 0.5)
        # What layers add must outweigh the token itself, or tied embeddings repeat it for ever.
        weights[name] = value * _LOUD if "post_" in name else value
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder
