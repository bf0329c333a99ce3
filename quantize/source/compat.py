"""The part of mlx-lm that is touched and not public, with its reason and what would make it go.

`pyproject.toml` holds mlx-lm below 0.33, and tests/quantize/source/test_compat.py fails when an upgrade changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """`mlx_lm.utils._get_classes` of 0.32: the classes of a model and of its arguments.

    Why: `load_model` takes this function as its default, but there is no public way from a config.json to the classes
    without a folder of weights. It goes when there is one.

    Raises:
        ValueError: mlx-lm does not know the `model_type`.
        KeyError: there is none.
    """
    from mlx_lm.utils import _get_classes

    model_class, arguments_class = _get_classes(dict(config))
    return model_class, arguments_class
