"""The parts of mlx-lm and transformers that are touched and not public, or not ours to rely on, each with its reason.

`pyproject.toml` holds mlx-lm below 0.33, and tests/quantize/source/test_compat.py fails when an upgrade changes it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any


def model_classes(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """`mlx_lm.utils._get_classes` of 0.32: the classes of a model and of its arguments.

    Why: `load_model` takes this function as its default, but there is no public way from a config.json to the classes
    without a folder of weights. It goes when there is one.

    Raises:
        ValueError: mlx-lm does not know the `model_type`.
        KeyError: there is none.
        ImportError: the model needs a package that is not installed. olmo of 0.32 ends the process for that.
    """
    from mlx_lm.utils import _get_classes

    try:
        model_class, arguments_class = _get_classes(dict(config))
    except SystemExit as error:
        raise ImportError("a package that is not installed") from error
    return model_class, arguments_class


def configuration(config: Mapping[str, Any]) -> Any:
    """transformers' configuration of a config.json, with the defaults of its class. No code of the model is run.

    Why: mlx-lm knows a default for some of what it needs itself, and the longest context is not among that. It goes
    when mlx-lm's arguments have it.

    Raises:
        Exception: transformers does not know the type, or refuses a value.
    """
    from transformers import AutoConfig

    given = {key: value for key, value in config.items() if key not in ("auto_map", "quantization_config")}
    return AutoConfig.for_model(**copy.deepcopy(given))
