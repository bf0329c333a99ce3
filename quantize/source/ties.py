"""Whether the head of a model is its embedding, said in config.json where the makers leave it to the class.

transformers leaves tie_word_embeddings out where it is the default of the class, and mlx-lm's default may be the other
one. Then the tensors tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Mapping
from typing import Any

from quantize.source.mlx_model import empty_model

_FLAG = "tie_word_embeddings"
_HEADS = ("lm_head.weight", "language_model.lm_head.weight")


def explicit_about_ties(config: Mapping[str, Any], tensors: Container[str]) -> Mapping[str, Any]:
    """`config` with the flag wherever it is looked for, if it says nothing. Raises SourceError: no such model.

    Where the class makes the head out of the embedding itself, tied or not, the flag is false: it has no place for that
    head otherwise, and loads nothing.
    """
    text = config.get("text_config")
    text = text if isinstance(text, dict) else None
    stated = next((level[_FLAG] for level in (config, text or {}) if level.get(_FLAG) is not None), None)
    if stated is None:
        stated = _tied(config, tensors)
    if stated and _makes_its_head(config):
        return {**config, _FLAG: False}
    if stated is None:
        return config
    found = _with(config, stated)
    return found if text is None else found | {"text_config": _with(text, stated)}


def _with(level: Mapping[str, Any], stated: bool) -> dict[str, Any]:
    return dict(level) if level.get(_FLAG) is not None else {**level, _FLAG: stated}


def _tied(config: Mapping[str, Any], tensors: Container[str]) -> bool | None:
    """By what there is of a head; None where the model class needs nothing to be said."""
    if any(head in tensors for head in _HEADS):
        return False
    root = empty_model(config)
    heads = [root, root.get("language_model", {})]
    return True if any("lm_head" in module for module in heads) else None


def _makes_its_head(config: Mapping[str, Any]) -> bool:
    """As MiniCPM does: shown an embedding and nothing else."""
    # Other classes look for more than that, each in its own way.
    with contextlib.suppress(Exception):
        return _HEADS[0] in empty_model(config).sanitize({"model.embed_tokens.weight": object()})
    return False
