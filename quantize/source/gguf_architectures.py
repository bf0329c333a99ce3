"""The architectures of GGUF files that are supported: their tensor names, and config.json from their metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantize.errors import SourceError
from quantize.source.gguf_file import GgufFile
from quantize.source.gguf_tokenizer import special_ids, vocabulary

# Not a weight: what the frequencies of Llama 3.1's rotary embedding are divided by.
ROPE_FACTORS = "rope_freqs.weight"
# The same in all of Llama 3.1, 3.2 and 3.3; only the factor differs. GGUF holds the result, not these.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """`extra`: tensors of a layer beside those of a llama; `permutes`: llama.cpp reorders the rows of q and k.

    `model_type`: where it is not `name`. `norms_add_one`: the model multiplies by 1 + weight, the file holds the sum.
    `settings`: what config.json has beside a llama's, by the metadata's key for it, or as it is in all such models.
    """

    name: str
    model_class: str
    permutes: bool = False
    extra: Mapping[str, str] = field(default_factory=dict)
    model_type: str | None = None
    norms_add_one: bool = False
    settings: Mapping[str, str | float] = field(default_factory=dict)

    def name_in_mlx(self, name: str) -> str:
        """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`. Raises SourceError."""
        if name in _TOP:
            return _TOP[name]
        match = re.fullmatch(r"blk\.(\d+)\.(.+)", name)
        below = {**_LAYER, **self.extra}.get(match[2]) if match else None
        if match is None or below is None:
            raise SourceError(f"The GGUF holds a tensor that {self.name} models do not have: {name}.")
        return f"model.layers.{match[1]}.{below}"

    def permuted_heads(self, name: str, config: Mapping[str, Any]) -> int | None:
        """In how many heads the rows of the tensor are interleaved; None if they are not."""
        if self.permutes and name.endswith(".attn_q.weight"):
            return int(config["num_attention_heads"])
        if self.permutes and name.endswith(".attn_k.weight"):
            return int(config["num_key_value_heads"])
        return None

    def added_to(self, name: str) -> float:
        """What llama.cpp's converter added to every element of the tensor."""
        return 1.0 if self.norms_add_one and name.endswith("norm.weight") else 0.0


_BIASES = {f"attn_{name}.bias": f"self_attn.{name}_proj.bias" for name in "qkv"}
_NORMS = {f"attn_{name}_norm.weight": f"self_attn.{name}_norm.weight" for name in "qk"}
_GEMMA3_NORMS = {
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
}
# The last two are the same in every Gemma 3 and not in the file.
_GEMMA3_SETTINGS: Mapping[str, str | float] = {
    "sliding_window": "attention.sliding_window",
    "query_pre_attn_scalar": "attention.key_length",
    "sliding_window_pattern": 6,
    "rope_local_base_freq": 10_000.0,
}
ARCHITECTURES = {
    known.name: known
    for known in (
        # Mistral and SmolLM as well.
        Architecture("llama", "LlamaForCausalLM", permutes=True),
        Architecture("qwen2", "Qwen2ForCausalLM", extra=_BIASES),
        Architecture("qwen3", "Qwen3ForCausalLM", extra=_NORMS),
        # 270M and 1B; larger ones scale RoPE.
        Architecture(
            "gemma3",
            "Gemma3ForCausalLM",
            extra=_NORMS | _GEMMA3_NORMS,
            model_type="gemma3_text",
            norms_add_one=True,
            settings=_GEMMA3_SETTINGS,
        ),
    )
}


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """Raises SourceError for a model that cannot be built from GGUF."""
    name = metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise SourceError(f"GGUF models of the architecture {name!r} are not supported; supported are {known}.")
    if metadata.get(f"{name}.expert_count"):
        raise SourceError(f"GGUF models of the architecture {name!r} with experts are not supported.")
    scaling = metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling != "none":
        raise SourceError(f"GGUF models with RoPE scaling {scaling!r} are not supported.")
    return ARCHITECTURES[name]


def config_of(file: GgufFile, *, dtype: str) -> dict[str, Any]:
    """config.json as mlx-lm reads it. Raises SourceError for a key that is missing."""
    metadata, architecture = file.metadata, architecture_of(file.metadata)

    def number(key: str) -> Any:
        if (value := metadata.get(f"{architecture.name}.{key}")) is None:
            raise SourceError(f"The GGUF lacks {architecture.name}.{key}.")
        return value

    heads = number("attention.head_count")
    head_dim = metadata.get(f"{architecture.name}.attention.key_length", number("embedding_length") // heads)
    if metadata.get(f"{architecture.name}.rope.dimension_count", head_dim) != head_dim:
        raise SourceError("GGUF models that rotate only a part of each head are not supported.")
    return {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_type or architecture.name,
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv"),
        "head_dim": head_dim,
        "rms_norm_eps": round(number("attention.layer_norm_rms_epsilon"), 12),
        "rope_theta": number("rope.freq_base"),
        "max_position_embeddings": number("context_length"),
        "vocab_size": len(vocabulary(metadata)),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": dtype,
        **{name: number(key) if isinstance(key, str) else key for name, key in architecture.settings.items()},
        **_rope_scaling(file, head_dim, number("rope.freq_base")),
        **{f"{name}_token_id": id for name, id in special_ids(metadata).items() if name != "unknown"},
    }


def _rope_scaling(file: GgufFile, head_dim: int, base: float) -> dict[str, Any]:
    """Llama 3.1's, recovered from its factors. Raises SourceError for factors that it does not explain."""
    if ROPE_FACTORS not in file.tensors:
        return {}
    factors = file.rows(file.tensors[ROPE_FACTORS], 0, 1)[0]
    factor = float(factors.max())
    wavelengths = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    cycles = _LLAMA3["original_max_position_embeddings"] / wavelengths
    low, high = _LLAMA3["low_freq_factor"], _LLAMA3["high_freq_factor"]
    smooth = np.clip((cycles - low) / (high - low), 0, 1)
    if not np.allclose(factors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise SourceError(f"The GGUF scales RoPE by factors that are not Llama 3's ({ROPE_FACTORS}).")
    return {"rope_scaling": {"rope_type": "llama3", "factor": factor, **_LLAMA3}}
