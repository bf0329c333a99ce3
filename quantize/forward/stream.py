"""Chunks of text through a model layer by layer, with one layer's weights in memory at a time.

    stream = Stream(open_model("source", HubOptions()), chunks, InFolder(folder))
    stream.run()
    logits = finish(stream.model.make(None), chunks[0], stream.hidden(0))

gives what `Model(chunks[0])` gives, bit for bit. A pass that was ended goes on at the layer and chunk where it was:
what the store holds is not computed again. What works on the layers themselves (a calibration) writes the loop of
`run` out: `inputs`, its own calls of the layer, `keep`, and at the layer's end `forget`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from quantize.forward.capture import Constant, FromLayer, Trace, arrays_of, trace
from quantize.forward.models import LazyModel
from quantize.forward.store import Store

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


class Stream:
    """`chunks` are token ids, each (1, length); lengths may differ.

    Raises:
        SourceError: the model cannot be read, or does more between its layers than to pass on what they return.
    """

    def __init__(self, model: LazyModel, chunks: Sequence[mx.array], store: Store) -> None:
        self.model = model
        self.chunks = chunks
        self._store = store
        root = model.make(None)
        self.layers = len(root.layers)
        self._traces: list[Trace] = []
        for number, tokens in enumerate(chunks):
            made = trace(root, tokens)
            store.put(_constants(number), {str(key): value for key, value in enumerate(made.constants)})
            self._traces.append(Trace(made.calls, ()))
        self._last_use = _last_uses(self._traces[0]) if chunks else {}

    def run(self, each: Callable[[int, int], None] = lambda layer, chunk: None) -> None:
        """Every layer over every chunk. `each` is told of the layer and the chunk that are done."""
        for layer in range(self.layers):
            missing = [chunk for chunk in range(len(self.chunks)) if not self.is_done(layer, chunk)]
            if missing:
                module = self.model.make(layer).layers[layer]
                for chunk in missing:
                    args, kwargs = self.inputs(layer, chunk)
                    self.keep(layer, chunk, module(*args, **kwargs))
                    each(layer, chunk)
                # Before the next one's weights.
                del module
                mx.clear_cache()
            self.forget(layer)

    def inputs(self, layer: int, chunk: int) -> Inputs:
        """Arguments of `layer` for `chunk`, as the model itself would pass them; the hidden state is the first."""

        def value(reference: FromLayer | Constant) -> mx.array:
            if isinstance(reference, Constant):
                return self._store.get(_constants(chunk))[str(reference.key)]
            return self._store.get(_returned(reference.layer, chunk))[str(reference.leaf)]

        return self._traces[chunk].calls[layer].filled(value)

    def keep(self, layer: int, chunk: int, returned: Any) -> None:
        """What `layer` returned for `chunk`, evaluated: all of it that a later layer or the head will ask for."""
        arrays = arrays_of(returned)
        used = {leaf for at, leaf in self._last_use if at == layer} | {0}
        self._store.put(_returned(layer, chunk), {str(leaf): arrays[leaf] for leaf in sorted(used)})

    def is_done(self, layer: int, chunk: int) -> bool:
        """Whether it is kept, or gone because all that needed it is done."""
        return any(self._store.has(_returned(later, chunk)) for later in range(layer, self.layers))

    def forget(self, layer: int) -> None:
        """Once `layer` is done for every chunk: drops what no layer after it is given."""
        last: dict[int, int] = defaultdict(int)
        for (source, _), user in self._last_use.items():
            last[source] = max(last[source], user)
        for source, user in last.items():
            if user == layer:
                for chunk in range(len(self.chunks)):
                    self._store.drop(_returned(source, chunk))

    def hidden(self, chunk: int) -> mx.array:
        """What the last layer returned, before the final norm: 2 * hidden size bytes a token in bfloat16."""
        return self._store.get(_returned(self.layers - 1, chunk))["0"]


def _last_uses(made: Trace) -> dict[tuple[int, int], int]:
    """(layer, leaf) -> the last layer that is given it."""
    return {
        (reference.layer, reference.leaf): layer
        for layer, call in enumerate(made.calls)
        for reference in call.references()
        if isinstance(reference, FromLayer)
    }


def _constants(chunk: int) -> str:
    return f"chunk-{chunk:05d}-constants"


def _returned(layer: int, chunk: int) -> str:
    return f"chunk-{chunk:05d}-layer-{layer:03d}"
