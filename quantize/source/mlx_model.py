"""mlx-lm's model of a config.json, without a weight in memory: MLX evaluates lazily."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from quantize.errors import SourceError
from quantize.source.compat import model_classes


def empty_model(config: Mapping[str, Any]) -> Any:
    """Raises SourceError when mlx-lm does not know the model's type, or not with these settings."""
    try:
        model_class, arguments_class = model_classes(config)
    except ValueError:
        raise SourceError(f"Models of the type {config.get('model_type')!r} are unknown to mlx-lm.") from None
    except ImportError as error:
        needed = f"{config.get('model_type')!r} without {error}"
        raise SourceError(f"mlx-lm cannot run models of the type {needed}.") from error
    try:
        # Some argument classes change nested tables in place.
        return model_class(arguments_class.from_dict(copy.deepcopy(dict(config))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SourceError(f"mlx-lm cannot make a model from the source's config.json ({reason}).") from error


def quantizable_modules(model: Any) -> frozenset[str]:
    """The paths of the modules that can be quantized, in the way that mlx-lm loads them again."""
    return frozenset(path for path, module in model.named_modules() if _has_modes(module))


def _has_modes(module: Any) -> bool:
    """mlx-lm passes the mode on, which not every class of its own takes (the fused matrices of afm7)."""
    made = getattr(module, "to_quantized", None)
    return made is not None and "mode" in inspect.signature(made).parameters


def layer_count(config: Mapping[str, Any]) -> int:
    """How many layers that model has, whether config.json says it or leaves it to the class."""
    return len(empty_model(config).layers)
