"""Whether a set of tensors is what mlx-lm's own model class would load: none missing, none extra, shapes equal.

The finished folder goes through `sanitize` a second time when it is loaded: it must change nothing there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from quantize.errors import SourceError
from quantize.plan.output_tensor import OutputTensor
from quantize.source.mlx_model import empty_model, quantizable_modules


def check(config: Mapping[str, Any], outputs: Iterable[OutputTensor]) -> list[str]:
    """The modules that could be quantized and are not, by path. Raises SourceError naming the first tensor at fault."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from quantize.source.standins import Standin, sanitized

    outputs = list(outputs)
    model = empty_model(config)
    given = {output.name: Standin.of(output.name, output.shape, mx.bfloat16) for output in outputs}
    views = {name: tensor.view_of_source for name, tensor in given.items()}
    loaded = sanitized(model, given)
    expected = {name: value.shape for name, value in tree_flatten(model.parameters())}
    model_type = config["model_type"]
    for name, shape in expected.items():
        if name not in loaded:
            raise SourceError(f"The source lacks {name}, which mlx-lm's {model_type} model has.")
        if loaded[name].shape != shape:
            raise SourceError(f"{name} has the shape {loaded[name].shape}; mlx-lm's model has {shape}.")
    for name in given:
        if name not in expected:
            raise SourceError(f"mlx-lm's {model_type} model has no place for {name}.")
        again = loaded[name]
        if not isinstance(again, Standin) or again.view_of_source != views[name]:
            raise SourceError(f"mlx-lm's {model_type} model would change {name} again when it is loaded.")
    quantizable = quantizable_modules(model)
    for output in outputs:
        if output.spec is not None and output.path not in quantizable:
            raise SourceError(f"mlx-lm cannot quantize {output.path}.")
    return sorted(quantizable - {output.path for output in outputs if output.spec is not None})
