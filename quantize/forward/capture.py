"""What a model's own forward pass gives to each of its layers, found without running one of them.

MLX computes nothing until it is asked to, so the model's own `__call__` runs over its real layers and nothing is
evaluated; only what each layer was called with is noted. Masks, sliding windows, per-layer inputs, offsets and shared
keys thus come from the model itself, whatever its family. What a layer was given that an earlier one returned becomes
a reference; all else are constants of the chunk, evaluated here. In place of what layers return stand numbers that are
none: a constant that holds one depends on a layer in a way that cannot be carried from layer to layer, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from quantize.errors import SourceError
from quantize.forward.hooks import Hook, hooked


@dataclass(frozen=True, slots=True)
class FromLayer:
    """The array number `leaf` of what `layer` returned; 0 is the hidden state."""

    layer: int
    leaf: int


@dataclass(frozen=True, slots=True)
class Constant:
    """An array of the chunk: embedded tokens, a mask, a per-layer input. `key` is its number in `Trace.constants`."""

    key: int


@dataclass(frozen=True, slots=True)
class Call:
    """`args` and `kwargs` of one layer as the model passes them, with references in place of arrays."""

    args: Any
    kwargs: Any

    def references(self) -> list[FromLayer | Constant]:
        found: list[FromLayer | Constant] = []
        _replace((self.args, self.kwargs), lambda leaf: found.append(leaf), (FromLayer, Constant))
        return found

    def filled(self, value: Callable[[FromLayer | Constant], mx.array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = _replace((self.args, self.kwargs), value, (FromLayer, Constant))
        return args, kwargs


@dataclass(frozen=True, slots=True)
class Trace:
    """One chunk's way through a model: a call a layer, and the constants, evaluated."""

    calls: Sequence[Call]
    constants: Sequence[mx.array]


def trace(model: Any, tokens: mx.array) -> Trace:
    """`tokens` (1, length). Reads the weights outside of the layers only. Raises SourceError: not such a model."""
    calls: list[Call] = []
    origin: dict[int, FromLayer | Constant] = {}
    # Arrays stay alive, or another could get the id of one that is gone.
    constants: list[mx.array] = []
    alive: list[Any] = []

    def reference(value: mx.array) -> FromLayer | Constant:
        if id(value) not in origin:
            origin[id(value)] = Constant(len(constants))
            constants.append(value)
        return origin[id(value)]

    def note(number: int) -> Hook:
        def hook(call: Any, *args: Any, **kwargs: Any) -> Any:
            if number != len(calls):
                raise SourceError("The model does not call its layers once and in order, so it cannot be streamed.")
            if any(_holds_arrays(leaf) for _, leaf in tree_flatten((args, kwargs))):
                raise SourceError("The model's layers share more than they return, so it cannot be streamed.")
            calls.append(Call(*_replace((args, kwargs), reference, mx.array)))
            returned = _replace(call(*args, **kwargs), _nothing, mx.array)
            alive.append(returned)
            for leaf, value in enumerate(arrays_of(returned)):
                origin[id(value)] = FromLayer(number, leaf)
            return returned

        return hook

    layers = list(model.layers)
    with hooked((layer, note(number)) for number, layer in enumerate(layers)):
        model(tokens)
    if len(calls) != len(layers):
        raise SourceError("The model does not call all of its layers, so it cannot be streamed.")
    mx.eval(constants)
    for value in constants:
        if mx.issubdtype(value.dtype, mx.floating) and mx.isnan(value).any().item():
            raise SourceError("The model changes what a layer returns before the next one, so it cannot be streamed.")
    return Trace(calls, constants)


def _holds_arrays(value: Any) -> bool:
    """An object whose arrays a reference cannot stand for."""
    return any(isinstance(held, mx.array) for held in getattr(value, "__dict__", {}).values())


def arrays_of(returned: Any) -> list[mx.array]:
    """The arrays of what a layer returned, the hidden state first."""
    return [value for _, value in tree_flatten(returned) if isinstance(value, mx.array)]


def finish(model: Any, tokens: mx.array, hidden: mx.array) -> mx.array:
    """Logits (1, length, vocabulary) of what the last layer returned for `tokens`, by the model's own norm and head.

    Both are of single positions, so any run of positions may be given alone. Logits that depend on more than the last
    hidden state are NaN.
    """
    layers = list(model.layers)
    nothing = mx.full(hidden.shape, float("nan"), hidden.dtype)

    def skip(call: Any, *args: Any, **kwargs: Any) -> Any:
        return _first_replaced(call(*args, **kwargs), nothing)

    def end(call: Any, *args: Any, **kwargs: Any) -> Any:
        return _first_replaced(call(*args, **kwargs), hidden)

    with hooked([*((layer, skip) for layer in layers[:-1]), (layers[-1], end)]):
        logits: mx.array = model(tokens)
    return logits


def _first_replaced(returned: Any, first: mx.array) -> Any:
    """The rest stays, so that the model finds the form that it unpacks; nothing of it is evaluated."""
    rest = iter([first])
    return _replace(returned, lambda value: next(rest, value), mx.array)


def _nothing(value: mx.array) -> mx.array:
    if mx.issubdtype(value.dtype, mx.floating):
        return mx.full(value.shape, float("nan"), value.dtype)
    return mx.zeros(value.shape, value.dtype)


def _replace(tree: Any, replace: Callable[[Any], Any], kinds: Any) -> Any:
    return tree_map(lambda leaf: replace(leaf) if isinstance(leaf, kinds) else leaf, tree)
