"""The role of each tensor of a checkpoint, and its place in mlx-lm's module tree: one table per model family.

A name that no rule of its family matches is an error: a tensor must never be quantized, kept or dropped by accident.
Names and layouts come from the checkpoints' own indexes and mlx-lm 0.32's `sanitize` methods; `structure.py` checks
every plan against mlx-lm's model class, tensor by tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantize.errors import SourceError
from quantize.source.roles import TensorRole


@dataclass(frozen=True, slots=True)
class Placement:
    """One destination of a source tensor: slice `part[0]` of `part[1]` equal ones along axis -2, as expert `expert`."""

    name: str
    role: TensorRole
    layer: int | None = None
    expert: int | None = None
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class Rule:
    """`pattern` matches the whole name below the layer (or the root); `to` is the name there in mlx-lm."""

    pattern: str
    role: TensorRole
    to: str = r"\g<0>"
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True, slots=True)
class Family:
    """`roots` maps prefixes of the checkpoint to those of mlx-lm; `dropped` matches what a text model does not need."""

    layer_rules: Sequence[Rule]
    roots: Mapping[str, str]
    root_rules: Sequence[Rule]
    dropped: Sequence[str] = ()


_ROOT = (
    Rule(r"embed_tokens\.weight", "embedding"),
    Rule(r"norm\.weight", "other"),
)
_ATTENTION = (
    Rule(r"self_attn\.[qkvo]_proj\.weight", "attention"),
    Rule(r"self_attn\.[qkvo]_proj\.bias", "other"),
    Rule(r"self_attn\.[qk]_norm\.weight", "other"),
)
_NORMS = (Rule(r"(?:input|post_attention|pre_feedforward|post_feedforward)_layernorm\.weight", "other"),)
_MLP = (
    Rule(r"mlp\.(?:gate|up)_proj\.weight", "mlp_gate_up"),
    Rule(r"mlp\.down_proj\.weight", "mlp_down"),
    Rule(r"mlp\.(?:gate|up|down)_proj\.bias", "other"),
)
# One matrix for gate and up, the rows of gate first; one per expert, or all experts in one tensor.
_FUSED_EXPERTS = (
    Rule(r"experts\.gate_up_proj", "expert_gate_up", "experts.switch_glu.gate_proj.weight", part=(0, 2)),
    Rule(r"experts\.gate_up_proj", "expert_gate_up", "experts.switch_glu.up_proj.weight", part=(1, 2)),
    Rule(r"experts\.down_proj", "expert_down", "experts.switch_glu.down_proj.weight"),
)
_GEMMA4 = (
    Rule(r"router\.proj\.weight", "router"),
    Rule(r"router\.(?:scale|per_expert_scale)", "other"),
    Rule(r"(?:pre|post)_feedforward_layernorm_[12]\.weight", "other"),
    Rule(r"layer_scalar", "other"),
    Rule(r"per_layer_(?:input_gate|projection)\.weight", "per_layer_input"),
    Rule(r"post_per_layer_input_norm\.weight", "other"),
)
_GEMMA4_ROOT = (
    Rule(r"embed_tokens_per_layer\.weight", "embedding"),
    Rule(r"per_layer_model_projection\.weight", "per_layer_input"),
    Rule(r"per_layer_projection_norm\.weight", "other"),
)
_QWEN_EXPERTS = (
    Rule(r"mlp\.gate\.weight", "router"),
    Rule(r"mlp\.experts\.(?P<expert>\d+)\.(gate|up)_proj\.weight", "expert_gate_up", r"mlp.switch_mlp.\2_proj.weight"),
    Rule(r"mlp\.experts\.(?P<expert>\d+)\.down_proj\.weight", "expert_down", "mlp.switch_mlp.down_proj.weight"),
)


def _block_sparse(name: str, projection: str, role: TensorRole) -> Rule:
    """Mixtral's names: w1 is gate, w2 is down, w3 is up."""
    pattern = rf"block_sparse_moe\.experts\.(?P<expert>\d+)\.{name}\.weight"
    return Rule(pattern, role, f"block_sparse_moe.switch_mlp.{projection}_proj.weight")


_MIXTRAL_EXPERTS = (
    Rule(r"block_sparse_moe\.gate\.weight", "router"),
    Rule(r"block_sparse_moe\.e_score_correction_bias", "other"),
    _block_sparse("w1", "gate", "expert_gate_up"),
    _block_sparse("w2", "down", "expert_down"),
    _block_sparse("w3", "up", "expert_gate_up"),
)
_PHI3 = (
    Rule(r"self_attn\.qkv_proj\.weight", "attention"),
    Rule(r"mlp\.gate_up_proj\.weight", "mlp_gate_up"),
)

_DENSE = (*_ATTENTION, *_MLP, *_NORMS)
_PLAIN = {"model.": "model."}
_NESTED = {"model.language_model.": "language_model.model.", "language_model.model.": "language_model.model."}
_TOWERS = (
    r"(?:model\.)?(?:vision_tower|multi_modal_projector|audio_tower|embed_audio|embed_vision|vision_embedder)\..*",
)
_ROTARY = (r".*self_attn\.rotary_emb\.inv_freq",)
_CLIPPING = (*_ROTARY, r".*\.(?:input|output)_(?:max|min)")

_LLAMA = Family(_DENSE, _PLAIN, _ROOT, _ROTARY)
_GEMMA3 = Family(_DENSE, _NESTED, _ROOT, _TOWERS)
_GEMMA4_LAYER = (*_DENSE, *_FUSED_EXPERTS, *_GEMMA4)
_MIXTRAL = Family((*_ATTENTION, *_NORMS, *_MIXTRAL_EXPERTS), _PLAIN, _ROOT, _ROTARY)

FAMILIES: Mapping[str, Family] = {
    "gemma4": Family(_GEMMA4_LAYER, _NESTED, (*_ROOT, *_GEMMA4_ROOT), (*_TOWERS, *_CLIPPING)),
    "gemma4_text": Family(_GEMMA4_LAYER, _PLAIN, (*_ROOT, *_GEMMA4_ROOT), _CLIPPING),
    "gemma3": _GEMMA3,
    "gemma3_text": Family(_DENSE, _PLAIN, _ROOT),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": Family((*_DENSE, *_QWEN_EXPERTS), _PLAIN, _ROOT),
    "phi3": Family((*_DENSE, *_PHI3), _PLAIN, _ROOT),
    "mixtral": _MIXTRAL,
    "minimax": _MIXTRAL,
    "minimax_m2": _MIXTRAL,
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Raises SourceError when the model type has no table."""
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        raise SourceError(f"Models of the type {model_type!r} are not supported; {', '.join(sorted(FAMILIES))} are.")
    return FAMILIES[str(model_type)]


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the config with the language model's numbers."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def place(name: str, family: Family, config: Mapping[str, Any]) -> list[Placement]:
    """The destinations of the tensor `name`; none if a text model does not need it. Raises SourceError if unknown."""
    if any(re.fullmatch(pattern, name) for pattern in family.dropped):
        return []
    if name == "lm_head.weight":
        # Some checkpoints store the tied matrix twice.
        return [] if config.get("tie_word_embeddings") else [Placement(name, "lm_head")]
    for prefix, target in family.roots.items():
        if name.startswith(prefix):
            return _below(name, name.removeprefix(prefix), target, family, text_config(config))
    raise _unknown(name, config)


def _below(name: str, rest: str, target: str, family: Family, text: Mapping[str, Any]) -> list[Placement]:
    layered = re.fullmatch(r"layers\.(\d+)\.(.+)", rest)
    rules, tail = (family.layer_rules, layered[2]) if layered else (family.root_rules, rest)
    layer = int(layered[1]) if layered else None
    if layer is not None and _reuses_keys(layer, tail, text):
        return []
    found = []
    for rule in rules:
        if match := re.fullmatch(rule.pattern, tail):
            expert = match.groupdict().get("expert")
            prefix = target if layer is None else f"{target}layers.{layer}."
            placed = prefix + match.expand(rule.to)
            found.append(Placement(placed, rule.role, layer, None if expert is None else int(expert), rule.part))
    if not found:
        raise _unknown(name, text)
    return found


def _reuses_keys(layer: int, tail: str, text: Mapping[str, Any]) -> bool:
    """The last layers of the small Gemma 4 models use an earlier layer's keys and values: mlx-lm drops theirs."""
    shared = text.get("num_kv_shared_layers") or 0
    own_keys = re.match(r"self_attn\.(?:[kv]_proj|k_norm)\.", tail)
    return bool(shared) and own_keys is not None and layer >= int(text["num_hidden_layers"]) - shared


def _unknown(name: str, config: Mapping[str, Any]) -> SourceError:
    model_type = config.get("model_type")
    return SourceError(f"The tensor {name} has no known role in models of the type {model_type!r}.")
