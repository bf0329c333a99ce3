"""Whether a set of tensors is what mlx-lm's own model class would load: none missing, none extra, shapes equal.

The model is instantiated without a weight in memory: MLX evaluates lazily.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from quantize.errors import SourceError
from quantize.plan.output_tensor import OutputTensor


def check(config: Mapping[str, Any], outputs: Iterable[OutputTensor]) -> list[str]:
    """The modules that could be quantized and are not, by path. Raises SourceError naming the first tensor at fault."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    outputs = list(outputs)
    model = _model(config)
    given = {output.name: mx.zeros(output.shape) for output in outputs}
    # As when the finished folder is loaded.
    sanitized = model.sanitize(dict(given)) if hasattr(model, "sanitize") else given
    expected = {name: value.shape for name, value in tree_flatten(model.parameters())}
    model_type = config["model_type"]
    for name, shape in expected.items():
        if name not in sanitized:
            raise SourceError(f"The source lacks {name}, which mlx-lm's {model_type} model has.")
        if sanitized[name].shape != shape:
            raise SourceError(f"{name} has the shape {sanitized[name].shape}; mlx-lm's model has {shape}.")
    for name in given:
        if name not in expected:
            raise SourceError(f"mlx-lm's {model_type} model has no place for {name}.")
    quantizable = {path for path, module in model.named_modules() if hasattr(module, "to_quantized")}
    for output in outputs:
        if output.spec is not None and output.path not in quantizable:
            raise SourceError(f"mlx-lm cannot quantize {output.path}.")
    return sorted(quantizable - {output.path for output in outputs if output.spec is not None})


def _model(config: Mapping[str, Any]) -> Any:
    from quantize.plan.compat import model_classes

    try:
        model_class, arguments_class = model_classes(config)
        # Some argument classes change nested tables in place.
        return model_class(arguments_class.from_dict(copy.deepcopy(dict(config))))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise SourceError(f"mlx-lm cannot make a model from the source's config.json ({reason}).") from error
