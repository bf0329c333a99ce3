"""A config.json as transformers 5 writes it, with what it moved or renamed in the older form too, which mlx-lm reads.

transformers 5 has all of RoPE in one table, `rope_parameters`. Most classes of mlx-lm 0.32 know `rope_theta` and
`rope_scaling` only, and take their own default for what they do not find: a Llama 3 saved anew would be computed with a
theta of 10,000 instead of 500,000, without an error. What stands in the older place already is never changed. It goes
when mlx-lm reads the table itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of a text model alone; mlx-lm has one class for it and for the model of several modalities that it was taken from.
_TYPES = {"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"}
# What transformers 5 writes for Qwen3's mixtures, and what mlx-lm reads there.
_EXPERTS, _OLDER_EXPERTS = "num_local_experts", "num_experts"
_MOVED = ("rope_theta", "partial_rotary_factor")
_GPT_NEOX = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
# The same by the type of a layer, as mlx-lm's models with windows name it.
_SLIDING = ("rope_local_base_freq", "swa_rope_theta")


def spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config`, and the language model's part of it, in both spellings."""
    found = dict(config)
    if (known := _TYPES.get(str(config.get("model_type")))) is not None:
        found["model_type"] = known
    if isinstance(text := config.get("text_config"), dict):
        found["text_config"] = _of_level(text)
    return _of_level(found)


def _of_level(level: Mapping[str, Any]) -> dict[str, Any]:
    if (experts := level.get(_EXPERTS)) is not None:
        level = {_OLDER_EXPERTS: experts, **level}
    return _rope_in_both_places(level)


def _rope_in_both_places(level: Mapping[str, Any]) -> dict[str, Any]:
    table = level.get("rope_parameters")
    if not isinstance(table, dict):
        return dict(level)
    added: dict[str, Any] = {}
    by_layer = {kind: rope for kind, rope in table.items() if isinstance(rope, dict)}
    if by_layer:
        added |= _older(by_layer.get("full_attention", {}))
        if (theta := by_layer.get("sliding_attention", {}).get("rope_theta")) is not None:
            added |= dict.fromkeys(_SLIDING, theta)
    else:
        added |= _older(table)
    if level.get("model_type") == "gpt_neox":
        added |= {older: added[name] for name, older in _GPT_NEOX.items() if name in added}
    # Some classes ask for it, if only to be told that there is none.
    return {"rope_scaling": None, **level, **{name: one for name, one in added.items() if level.get(name) is None}}


def _older(rope: Mapping[str, Any]) -> dict[str, Any]:
    """RoPE of one kind of layers in the older names."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    found: dict[str, Any] = {name: rope[name] for name in _MOVED if rope.get(name) is not None}
    if kind != "default":
        found["rope_scaling"] = {**rope, "rope_type": kind, "type": kind}
    return found
