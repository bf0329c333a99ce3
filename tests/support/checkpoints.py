"""Synthetic source checkpoints in the exact layout that the Hub has them, at any size; random weights, real tokenizer.

`gemma4` and `qwen3_moe` give a config and the shapes of every tensor; `write` makes a folder of shards of them, filled
or, for what only headers are read of, with holes in place of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from quantize.folder.safetensors_format import lay_out, nbytes
from tests.support.tiny_model import BOS_ID, CHAT_TEMPLATE, END_ID, VOCAB_SIZE, tiny_tokenizer

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Gemma4Sizes:
    """Tiny; every sixth of the real layers is a full-attention one, here every third."""

    hidden: int = 128
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    full_kv_heads: int = 1
    full_head_dim: int = 64
    experts: int = 8
    top_k: int = 2
    expert_width: int = 64
    mlp_width: int = 192
    vocabulary: int = VOCAB_SIZE
    full_every: int = 3
    vision_layers: int = 1


# google/gemma-4-26b-a4b-it.
GEMMA4_26B_A4B = Gemma4Sizes(2816, 30, 16, 8, 256, 2, 512, 128, 8, 704, 2112, 262144, 6, 27)


def gemma4(sizes: Gemma4Sizes = Gemma4Sizes()) -> tuple[dict[str, Any], Shapes]:
    s = sizes
    full = [(layer + 1) % s.full_every == 0 for layer in range(s.layers)]
    shapes: Shapes = {"model.language_model.embed_tokens.weight": (s.vocabulary, s.hidden)}
    for layer in range(s.layers):
        shapes |= {f"model.language_model.layers.{layer}.{n}": shape for n, shape in _gemma4_layer(s, full[layer])}
    shapes["model.language_model.norm.weight"] = (s.hidden,)
    shapes["model.embed_vision.embedding_projection.weight"] = (s.hidden, 1152)
    for layer in range(s.vision_layers):
        shapes[f"model.vision_tower.encoder.layers.{layer}.self_attn.q_proj.linear.weight"] = (1152, 1152)
        shapes[f"model.vision_tower.encoder.layers.{layer}.self_attn.q_proj.input_max"] = ()
    text = {
        "model_type": "gemma4_text",
        "hidden_size": s.hidden, "num_hidden_layers": s.layers, "intermediate_size": s.mlp_width,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "num_global_key_value_heads": s.full_kv_heads, "global_head_dim": s.full_head_dim, "attention_k_eq_v": True,
        "enable_moe_block": True, "num_experts": s.experts, "top_k_experts": s.top_k,
        "moe_intermediate_size": s.expert_width, "vocab_size": s.vocabulary, "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0, "use_double_wide_mlp": False, "sliding_window": 1024,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "final_logit_softcapping": 30.0,
        "layer_types": ["full_attention" if is_full else "sliding_attention" for is_full in full],
        "tie_word_embeddings": True, "dtype": "bfloat16",
    }  # fmt: skip
    config = {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "dtype": "bfloat16",
        "vocab_size": s.vocabulary,
        "tie_word_embeddings": True,
        "text_config": text,
        "vision_config": {"model_type": "gemma4_vision", "num_hidden_layers": s.vision_layers},
        "image_token_id": 258880,
        "vision_soft_tokens_per_image": 280,
        "eos_token_id": [END_ID, BOS_ID],
    }
    return config, shapes


def _gemma4_layer(s: Gemma4Sizes, full: bool) -> list[tuple[str, tuple[int, ...]]]:
    kv_heads, head_dim = (s.full_kv_heads, s.full_head_dim) if full else (s.kv_heads, s.head_dim)
    norms = [
        "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm",
        "pre_feedforward_layernorm_2", "post_feedforward_layernorm_1", "post_feedforward_layernorm_2",
    ]  # fmt: skip
    shapes = [
        ("experts.gate_up_proj", (s.experts, 2 * s.expert_width, s.hidden)),
        ("experts.down_proj", (s.experts, s.hidden, s.expert_width)),
        ("layer_scalar", (1,)),
        ("mlp.gate_proj.weight", (s.mlp_width, s.hidden)),
        ("mlp.up_proj.weight", (s.mlp_width, s.hidden)),
        ("mlp.down_proj.weight", (s.hidden, s.mlp_width)),
        ("router.proj.weight", (s.experts, s.hidden)),
        ("router.scale", (s.hidden,)),
        ("router.per_expert_scale", (s.experts,)),
        ("self_attn.q_proj.weight", (s.heads * head_dim, s.hidden)),
        ("self_attn.k_proj.weight", (kv_heads * head_dim, s.hidden)),
        ("self_attn.o_proj.weight", (s.hidden, s.heads * head_dim)),
        ("self_attn.q_norm.weight", (head_dim,)),
        ("self_attn.k_norm.weight", (head_dim,)),
        *((f"{norm}.weight", (s.hidden,)) for norm in norms),
    ]
    # Full-attention layers use the keys as values.
    return shapes if full else [*shapes, ("self_attn.v_proj.weight", (kv_heads * head_dim, s.hidden))]


def qwen3_moe(*, layers: int = 5, hidden: int = 64, experts: int = 4) -> tuple[dict[str, Any], Shapes]:
    width, heads, kv_heads, head_dim = 64, 4, 2, 32
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCAB_SIZE, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (VOCAB_SIZE, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            **_attention(prefix, hidden, heads, kv_heads, head_dim),
            prefix + "self_attn.q_norm.weight": (head_dim,),
            prefix + "self_attn.k_norm.weight": (head_dim,),
            prefix + "mlp.gate.weight": (experts, hidden),
        }
        for expert in range(experts):
            below = f"{prefix}mlp.experts.{expert}."
            shapes |= {below + f"{name}_proj.weight": (width, hidden) for name in ("gate", "up")}
            shapes[below + "down_proj.weight"] = (hidden, width)
    config = {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "bfloat16",
        "hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": 128, "moe_intermediate_size": width,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, "num_experts": experts,
        "num_experts_per_tok": 2, "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": True,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "vocab_size": VOCAB_SIZE, "tie_word_embeddings": False,
        "max_position_embeddings": 2048, "eos_token_id": END_ID,
    }  # fmt: skip
    return config, shapes


def llama(*, layers: int = 5, hidden: int = 64, width: int = 128) -> tuple[dict[str, Any], Shapes]:
    heads, kv_heads, head_dim = 4, 2, hidden // 4
    shapes: Shapes = {"model.embed_tokens.weight": (VOCAB_SIZE, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            **_attention(prefix, hidden, heads, kv_heads, head_dim),
            prefix + "mlp.gate_proj.weight": (width, hidden),
            prefix + "mlp.up_proj.weight": (width, hidden),
            prefix + "mlp.down_proj.weight": (hidden, width),
        }
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_size": hidden,
        "num_hidden_layers": layers, "intermediate_size": width, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "vocab_size": VOCAB_SIZE,
        "tie_word_embeddings": True, "max_position_embeddings": 2048, "eos_token_id": END_ID,
    }  # fmt: skip
    return config, shapes


def _attention(prefix: str, hidden: int, heads: int, kv_heads: int, head_dim: int) -> Shapes:
    return {
        prefix + "input_layernorm.weight": (hidden,),
        prefix + "post_attention_layernorm.weight": (hidden,),
        prefix + "self_attn.q_proj.weight": (heads * head_dim, hidden),
        prefix + "self_attn.k_proj.weight": (kv_heads * head_dim, hidden),
        prefix + "self_attn.v_proj.weight": (kv_heads * head_dim, hidden),
        prefix + "self_attn.o_proj.weight": (hidden, heads * head_dim),
    }


def write(
    folder: Path, config: Mapping[str, Any], shapes: Shapes, *, shards: int = 3, seed: int = 0, holes: bool = False
) -> Path:
    """The checkpoint in `folder`, in bfloat16, mxfp4 as bytes. Same arguments, same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = _grouped(shapes, shards)
    weight_map: dict[str, str] = {}
    random = _Random(seed)
    for number, group in enumerate(groups, start=1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        start, header = lay_out([(tensor, _dtype(tensor), shapes[tensor]) for tensor in group])
        with (folder / name).open("wb") as file:
            file.write(start)
            for tensor in group if not holes else ():
                random.write(file, tensor, shapes[tensor])
            file.truncate(header.size)
        weight_map |= dict.fromkeys(group, name)
    total = sum(nbytes(_dtype(tensor), shape) for tensor, shape in shapes.items())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    _write_json(folder / "config.json", config)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    # Odd spacing on purpose: auxiliary_files are copied byte for byte.
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class":  "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>",\n\n "eos_token": "<|im_end|>"}'
    )
    _write_json(folder / "generation_config.json", {"bos_token_id": BOS_ID, "eos_token_id": [END_ID, BOS_ID]})
    (folder / "LICENSE").write_text("Apache License\n")
    (folder / "preprocessor_config.json").write_text("{}")


_POOL = 2**22


class _Pool(NamedTuple):
    """`twice`: one after the other, so that as many can be read from any place. `state`: of what made them."""

    twice: npt.NDArray[np.float32]
    state: Mapping[str, Any]


@lru_cache(1)
def _pool(seed: int) -> _Pool:
    draw = np.random.default_rng(seed)
    pool = draw.standard_normal(_POOL, dtype=np.float32)
    return _Pool(np.concatenate([pool, pool]), draw.bit_generator.state)


class _Random:
    """Normal numbers, a pool of them read from ever other places: gigabytes in seconds."""

    def __init__(self, seed: int) -> None:
        self._draw, self._pool = np.random.default_rng(), _pool(seed)
        self._draw.bit_generator.state = self._pool.state

    def write(self, file: Any, name: str, shape: tuple[int, ...]) -> None:
        left = math.prod(shape)
        if _dtype(name) == "U8":
            # Any codes; scales are exponents of two.
            low, high = (0, 256) if name.endswith("_blocks") else (120, 126)
            file.write(self._draw.integers(low, high, left, np.uint8).tobytes())
            return
        gain = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.02
        # What scales is near one; what projects keeps the length of what it is given.
        mean = 0 if len(shape) > 1 else 1
        while left:
            begin = _POOL - self._draw.integers(_POOL)
            pool = self._pool.twice[begin : begin + min(left, _POOL)]
            file.write((mean + gain * pool).astype(np.float32).view(np.uint32).__rshift__(16).astype("<u2").tobytes())
            left -= len(pool)


def _dtype(name: str) -> str:
    return "U8" if name.endswith(("_blocks", "_scales")) else "BF16"


def _grouped(shapes: Shapes, shards: int) -> list[list[str]]:
    """`shards` runs of about equal size, in the given order."""
    total = sum(math.prod(shape) for shape in shapes.values())
    groups: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        if filled >= total * len(groups) / shards:
            groups.append([])
        groups[-1].append(name)
        filled += math.prod(shape)
    return groups


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2))
