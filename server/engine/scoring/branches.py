"""Texts that go on from one prompt, each on its own, over one KV cache of the prompt. Runs in the engine process.

Two ways. `Tree` reads several at once: their keys and values stand one behind the other after the prompt's, and a mask
shows each text the prompt and itself alone; the prompt's keys are a view for every row, so a hundred texts need no
hundred copies. It can do that with layers that keep keys and values, all or those of a sliding window. `OneAtATime`
does for any layers what its name says: what cannot be cut back afterwards is copied before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache

from server.engine import compat
from server.engine.compat import Layers


@dataclass(slots=True, eq=False)
class Continuation:
    """One text so far. `position` is that of its next token. `columns`: where its tokens are in the tree. `states`: of
    the layers that cannot be cut back."""

    position: int
    columns: list[int] = field(default_factory=list)
    states: dict[int, Any] = field(default_factory=dict)


class Branches(Protocol):
    """`most`: texts in one forward pass."""

    most: int

    def begin(self) -> Continuation:
        """A text that goes on from the prompt."""
        ...

    def fork(self, text: Continuation) -> Continuation:
        """Another that goes on from `text`, which is read no further meanwhile."""
        ...

    def read(self, parts: Sequence[tuple[Continuation, list[int]]]) -> mx.array:
        """The next tokens of each; logits of shape (texts, tokens of the longest, vocab), not evaluated."""
        ...

    def evaluate(self) -> None: ...

    def reset(self) -> None:
        """Forget all texts."""
        ...

    def close(self) -> None:
        """Forget all texts, and let go of the prompt's layers. Nothing can be read any more."""
        ...


def branches(model: Any, layers: Layers, length: int, *, together: bool) -> Branches:
    """`layers` hold `length` tokens, and still do so after each `reset`. `together`: the model can be given several
    texts of different lengths in one forward pass."""
    return (
        Tree(model, layers, length)
        if together and all(map(compat.can_branch, layers))
        else OneAtATime(model, layers, length)
    )


# Texts that are read at once.
_MOST_TEXTS = 32
# Bytes of a layer's keys and values, where a model makes others of them: Metal copies those for each row of few tokens.
_MOST_COPIED = 2**29


class Tree:
    def __init__(self, model: Any, layers: Layers, length: int) -> None:
        self._model = model
        self._length = length
        self.layers = [_Layer(self, *compat.ordered(layer), compat.window_size(layer)) for layer in layers]
        largest = max(layer.columns.nbytes for layer in self.layers)
        self.most = max(1, min(_MOST_TEXTS, _MOST_COPIED // max(1, largest)))
        # The position of each column behind the prompt's.
        self._positions: list[int] = []
        # Of the pass under way: which columns behind the prompt's each row's tokens see, and the tokens' positions.
        self.offset: int | mx.array = length
        self._seen = np.zeros((0, 0, 0), np.bool_)
        self._rows: np.ndarray[Any, np.dtype[np.int32]] = np.zeros((0, 0), np.int32)
        self.shared: compat.SharedRows = {}
        self._masks: dict[tuple[int, int | None], mx.array] = {}

    def begin(self) -> Continuation:
        return Continuation(self._length)

    def fork(self, text: Continuation) -> Continuation:
        return Continuation(text.position, list(text.columns))

    def read(self, parts: Sequence[tuple[Continuation, list[int]]]) -> mx.array:
        width = max(len(tokens) for _, tokens in parts)
        first = len(self._positions)
        offsets = [text.position for text, _ in parts]
        # Nothing looks at the padding, which sees itself so that it is a number.
        self._rows = np.add.outer(np.array(offsets, np.int32), np.arange(width, dtype=np.int32))
        self._positions += self._rows.reshape(-1).tolist()
        self._seen = np.zeros((len(parts), width, len(self._positions)), np.bool_)
        for row, (text, tokens) in enumerate(parts):
            begin = first + row * width
            self._seen[row][:, text.columns] = True
            self._seen[row, :, begin : begin + width] = np.tri(width, dtype=np.bool_)
            text.columns += range(begin, begin + len(tokens))
            text.position += len(tokens)
        self._masks.clear()
        self.offset = offsets[0] if len(set(offsets)) == 1 else mx.array(offsets)
        padded = [tokens + [0] * (width - len(tokens)) for _, tokens in parts]
        with compat.folded_attention(self.shared):
            logits: mx.array = self._model(mx.array(padded), cache=self.layers)
        # Kept any longer, they would make the next pass copy all columns.
        self.shared.clear()
        return logits

    def mask(self, kept: int, window: int | None) -> mx.array:
        """Shape (rows, 1, tokens, columns), for a layer that has the prompt's last `kept` columns."""
        if (kept, window) not in self._masks:
            self._masks[kept, window] = self._mask(kept, window)
        return self._masks[kept, window]

    def _mask(self, kept: int, window: int | None) -> mx.array:
        rows, width = self._rows.shape
        seen = self._seen
        if window is None:
            before = mx.ones((rows, width, kept), mx.bool_)
        else:
            distance = self._rows[:, :, None] - np.array(self._positions, np.int32)
            seen = seen & (distance < window)
            prompt = mx.arange(self._length - kept, self._length)
            before = mx.array(self._rows)[:, :, None] - prompt < window
        return mx.concatenate([before, mx.array(seen)], axis=-1)[:, None]

    def evaluate(self) -> None:
        mx.eval([layer.columns.state for layer in self.layers])

    def reset(self) -> None:
        self._positions.clear()
        for layer in self.layers:
            layer.reset()

    def close(self) -> None:
        self.reset()
        # Each knows the tree: it would hold them all until Python looks for cycles.
        self.layers = []


class _Layer:
    """A layer as the models of mlx-lm use one. `columns` has the keys and values of the prompt, or of its end, and then
    those of all texts.

    mlx-lm 0.32.2 says nowhere what a model may ask of a cache: the slow tests put every architecture through this one.
    """

    def __init__(self, tree: Tree, columns: KVCache, kept: int, window: int | None) -> None:
        self.columns = columns
        self._tree = tree
        self._kept = kept
        self._window = window
        self._rows = 1

    @property
    def offset(self) -> int | mx.array:
        return self._tree.offset

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._rows = keys.shape[0]
        self.columns.update_and_fetch(compat.fold(keys), compat.fold(values))
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        keys, values = self.columns.keys_and_values()
        return self._for_each_row(keys), self._for_each_row(values)

    def _for_each_row(self, array: mx.array) -> mx.array:
        """A view: nothing is copied."""
        view = mx.broadcast_to(array, (self._rows, *array.shape[1:]))
        self._tree.shared[id(view)] = (view, array)
        return view

    def make_mask(self, tokens: int, window_size: int | None = None, return_array: bool = True) -> mx.array:
        del tokens, return_array
        return self._tree.mask(self._kept, window_size or self._window)

    def reset(self) -> None:
        self.columns.trim(self.columns.offset - self._kept)

    # What models ask of a cache besides.

    def __bool__(self) -> bool:
        return True

    def size(self) -> int:
        return int(self.columns.offset)

    def empty(self) -> bool:
        return bool(self.columns.empty())


class OneAtATime:
    most = 1

    def __init__(self, model: Any, layers: Layers, length: int) -> None:
        self._model = model
        self._layers = list(layers)
        self._length = length
        # Tokens that the layers hold which can be cut back.
        self._held = length
        self._used: Layers = layers
        self._states = {i: layer for i, layer in enumerate(layers) if not compat.is_trimmable(layer)}

    def begin(self) -> Continuation:
        return Continuation(self._length, states=_copied(self._states))

    def fork(self, text: Continuation) -> Continuation:
        return Continuation(text.position, states=_copied(text.states))

    def read(self, parts: Sequence[tuple[Continuation, list[int]]]) -> mx.array:
        [(text, tokens)] = parts
        self._cut_to(text.position)
        layers = [text.states.get(i, layer) for i, layer in enumerate(self._layers)]
        self._used = layers
        logits: mx.array = self._model(mx.array([tokens]), cache=layers)
        text.position += len(tokens)
        self._held = text.position
        return logits

    def evaluate(self) -> None:
        mx.eval([layer.state for layer in self._used])

    def reset(self) -> None:
        self._cut_to(self._length)

    def close(self) -> None:
        self.reset()
        self._layers, self._used, self._states = [], [], {}

    def _cut_to(self, length: int) -> None:
        """What stands behind is another text's."""
        for i, layer in enumerate(self._layers):
            if i not in self._states:
                layer.trim(self._held - length)
        self._held = length


def _copied(states: dict[int, Any]) -> dict[int, Any]:
    return {i: compat.copy(layer) for i, layer in states.items()}
