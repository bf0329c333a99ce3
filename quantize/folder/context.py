"""For how many tokens a model was made, by its config.json or by the configuration class of its type. Pure.

`max_position_embeddings` is what a model was trained with or what it was extended to, depending on how its RoPE is
scaled: most kinds count the extension in, `linear` and `dynamic` do not, and a `yarn` that a user has added does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The names of the longest sequence, in config.json and in mlx-lm's arguments, the usual one first.
NAMES = (
    "max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx",
    "model_max_length", "context_length",
)  # fmt: skip
_ROPES = ("rope_scaling", "rope_parameters")
_LENGTHENING = ("linear", "dynamic")
_YARN = ("yarn", "deepseek_yarn", "telechat3-yarn")
# transformers writes 1e30 where it does not know one.
_LONGEST = 2**31


def stated_context(config: Mapping[str, Any]) -> int | None:
    """What config.json alone says; None if it leaves something to the class of the model."""
    longest, rope = stated(config)
    # Whether all layers are scaled, only the class knows.
    if longest is None or (rope is not None and _kind(rope) in _LENGTHENING):
        return None
    return extended(longest, rope)


def stated(config: Mapping[str, Any]) -> tuple[int | None, Mapping[str, Any] | None]:
    """The longest sequence and the scaling of RoPE that config.json names; of a multimodal model, its text part's."""
    text = config.get("text_config")
    levels = [level for level in (text, config) if isinstance(level, dict)]
    longest = next((count for level in levels for name in NAMES[:2] if (count := as_count(level.get(name)))), None)
    rope = next((rope for level in levels for name in _ROPES if isinstance(rope := level.get(name), dict)), None)
    return longest, rope


def extended(longest: int, rope: object) -> int:
    """`longest` positions under the scaling `rope`: {"rope_type" or "type", "factor", ...}, or None."""
    if not isinstance(rope, Mapping):
        return longest
    factor = rope.get("factor")
    factor = factor if isinstance(factor, int | float) and 1 <= factor < _LONGEST else 1
    kind = _kind(rope)
    if kind in _LENGTHENING:
        return as_count(longest * factor) or longest
    if kind in _YARN:
        original = as_count(rope.get("original_max_position_embeddings")) or longest
        return max(longest, as_count(original * factor) or 0)
    return longest


def as_count(value: object) -> int | None:
    """`value` if it can be a number of tokens."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return int(value) if is_number and 1 <= value < _LONGEST else None  # type: ignore[operator, call-overload]


def _kind(rope: Mapping[str, Any]) -> str:
    """Of tables by the type of a layer, there is more than one."""
    if any(isinstance(value, dict) for value in rope.values()):
        return "by layer"
    return str(rope.get("rope_type") or rope.get("type") or "default")
