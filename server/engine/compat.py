"""What leans on parts of MLX and mlx-lm that their documentation does not promise. Runs in the engine process.

Each entry names the version that it was written for, why it is needed, and when it can go. `pyproject.toml` bounds both
packages from above, and `tests/server/engine/test_compat.py` fails when an upgrade changes what is relied on here.
"""

from __future__ import annotations

import contextlib
import copy as copying
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map, tree_unflatten
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models import cache as caches_of_mlx_lm
from mlx_lm.models import switch_layers
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

# One mlx-lm cache per layer.
Layers = list[Any]

# ---- batches. mlx-lm 0.32.2: `BatchGenerator`, the documented way, reads every waiting prompt in one forward pass and
# leaves no control between two steps; the engine needs the half of it that reads, an undocumented class. It can go when
# BatchGenerator takes a token budget per step.


def prefill_together(model: Any, caches: Sequence[Layers], tokens: Sequence[list[int]]) -> list[Layers]:
    """Read each sequence's next `tokens` in one forward pass, padded to the longest; returns the caches after it."""
    batch = PromptProcessingBatch(
        model,
        list(range(len(caches))),
        list(caches),
        [[] for _ in caches],
        prefill_step_size=max(map(len, tokens)),
    )
    batch.prompt(list(tokens))
    return [batch.extract_cache(index) for index in range(len(caches))]


# ---- random numbers. MLX 0.32.4: `mx.random.categorical` takes one key, and a key for each row of a batch is as many
# operations; and it cannot be vectorized. What it computes is written out here, for all rows at once and with the same
# result. It can go when MLX draws with a key for each row.


def _uniform(key: mx.array) -> mx.array:
    return mx.random.uniform(key=key)


# (rows, tokens, 2) to (rows, tokens) and to (rows, tokens, 2, 2).
uniform_by_keys: Any = mx.vmap(mx.vmap(_uniform))
split_by_keys: Any = mx.vmap(mx.vmap(mx.random.split))
# The largest uniform number leaves nothing of the sum to the tokens behind the last possible one.
_BELOW_ALL = 1 - 2**-23


def numbers_by_keys(keys: mx.array) -> mx.array:
    """(rows, tokens, 2) to (rows, tokens): what `draw_by_rows` draws by."""
    return mx.minimum(uniform_by_keys(keys), _BELOW_ALL)


def draw_by_rows(logits: mx.array, numbers: mx.array) -> mx.array:
    """A token of each row, (rows, width) and (rows, 1) to (rows,): `mx.random.categorical` of that row and the key that
    the number was made of."""
    weights = mx.exp(logits - logits.max(axis=-1, keepdims=True))
    up_to = mx.cumsum(weights, axis=-1)
    drawn = numbers * up_to[:, -1:]
    return (up_to <= drawn).sum(axis=-1).astype(mx.uint32)


# ---- KV caches. mlx-lm 0.32.2: a cache can be trimmed at its end and merged into a batch, but not cut at its front,
# copied or joined. `state` is (keys, values, offset) for a KVCache, with keys and values of shape (1, heads, buffer,
# head_dim). These can go when mlx-lm cuts, copies and joins caches.


def is_trimmable(layer: Any) -> bool:
    """Whether any range of its tokens can be cut out. `layer.is_trimmable()` also says so of a sliding window that is
    not full yet; and a subclass may keep more than keys and values, so the type is compared exactly."""
    if isinstance(layer, CacheList):
        return all(map(is_trimmable, layer.caches))
    return type(layer) is KVCache


def cut(layer: Any, start: int, stop: int) -> Any:
    """Tokens start..stop of a trimmable layer, as a separate cache."""
    if isinstance(layer, CacheList):
        return CacheList(*(cut(part, start, stop) for part in layer.caches))
    keys, values, _ = layer.state
    # Contiguous, or the whole buffer would stay in memory behind the view.
    parts = (mx.contiguous(array[..., start:stop, :]) for array in (keys, values))
    return KVCache.from_state((*parts, stop - start))


def join(parts: Sequence[tuple[Any, int, int]], room: int = 0) -> Any:
    """Tokens start..stop of trimmable layers, one range behind the other, in a buffer with room for `room` more: mlx-lm
    copies a full one to add to it."""
    first = parts[0][0]
    if isinstance(first, CacheList):
        return CacheList(
            *(
                join([(layer.caches[i], start, stop) for layer, start, stop in parts], room)
                for i in range(len(first.caches))
            )
        )
    arrays = []
    for which in (0, 1):
        pieces = [layer.state[which][..., start:stop, :] for layer, start, stop in parts]
        rows, heads, _, width = pieces[0].shape
        arrays.append(mx.concatenate([*pieces, mx.zeros((rows, heads, room, width), pieces[0].dtype)], axis=2))
    return KVCache.from_state((*arrays, sum(stop - start for _, start, stop in parts)))


def copy(layer: Any) -> Any:
    """A cache that shares no array with `layer`: mlx-lm assigns into its caches' arrays in place."""
    if isinstance(layer, RotatingKVCache):
        return _copy_window(layer)
    if isinstance(layer, CacheList):
        return CacheList(*map(copy, layer.caches))
    if not is_storable(layer):
        # A class of the architecture's own.
        return copying.deepcopy(layer)
    state = tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, mx.array) else leaf, layer.state)
    return type(layer).from_state(state)


def is_storable(layer: Any) -> bool:
    """Whether `load_prompt_cache` makes it again: it looks for the class in mlx-lm's module of caches only."""
    return getattr(caches_of_mlx_lm, type(layer).__name__, None) is type(layer)


def can_go_back(layer: Any) -> bool:
    """Whether its state after an earlier token of the last forward pass can be had: see `state_at`."""
    if isinstance(layer, CacheList):
        return all(map(can_go_back, layer.caches))
    return is_trimmable(layer) or (type(layer) is RotatingKVCache and not layer.keep)


def state_at(layer: Any, position: int) -> Any:
    """A copy of a non-trimmable layer as it was after `position` tokens, which the last forward pass read.

    mlx-lm 0.32.2 lets a window grow by all tokens of a pass and cuts it before the next one, so that each of them sees
    a whole window. None where that does not reach: of other layers only the latest state is there.
    """
    if isinstance(layer, CacheList):
        parts = [cut(part, 0, position) if is_trimmable(part) else state_at(part, position) for part in layer.caches]
        return None if None in parts else CacheList(*parts)
    if not can_go_back(layer):
        return copy(layer)
    if layer.empty() or position > layer.offset:
        return None
    arrays = [layer._temporal_order(array) for array in (layer.keys, layer.values)]
    size, stop = min(position, layer.max_size), arrays[0].shape[2] - (layer.offset - position)
    if size == 0 or stop < size:
        return None
    # Contiguous, or the whole buffer would stay in memory behind the view.
    keys, values = (mx.contiguous(array[..., stop - size : stop, :]) for array in arrays)
    return RotatingKVCache.from_state((keys, values, position, layer.keep, layer.max_size, size))


def undone(layer: Any, before: Any, position: int) -> Any:
    """The layer as it was after `position` tokens, before a forward pass over more; None where there is no way back.
    `before` is a `shared` copy of then, or None when it was let go, since the pass is evaluated so far."""
    if before is not None or not can_go_back(layer):
        return before
    if isinstance(layer, CacheList):
        return CacheList(*(undone(part, None, position) for part in layer.caches))
    if is_trimmable(layer):
        layer.trim(layer.offset - position)
        return layer
    if position < layer.max_size:
        return state_at(layer, position) if position else RotatingKVCache(layer.max_size)
    # One token of the window is gone. Nothing sees it: the next pass cuts it off, or a token takes its place.
    size = layer.max_size - 1
    arrays = [layer._temporal_order(array) for array in (layer.keys, layer.values)]
    stop = arrays[0].shape[2] - (layer.offset - position)
    if stop < size:
        return None
    keys, values = (mx.pad(array[..., stop - size : stop, :], [(0, 0), (0, 0), (1, 0), (0, 0)]) for array in arrays)
    return RotatingKVCache.from_state((keys, values, position, 0, layer.max_size, layer.max_size))


def shared(layer: Any) -> Any:
    """The layer with arrays of its own over the same memory, which MLX copies when one of both writes into it. None for
    a class of the architecture's own."""
    if not all(map(is_storable, leaves([layer]))):
        return None
    state = tree_map(lambda leaf: mx.array(leaf) if isinstance(leaf, mx.array) else leaf, layer.state)
    return type(layer).from_state(state)


def _copy_window(layer: RotatingKVCache) -> RotatingKVCache:
    """The last `max_size` tokens in order: after a long chunk mlx-lm also keeps the tokens of the chunk."""
    if layer.empty():
        return RotatingKVCache(layer.max_size, layer.keep)
    if not layer.keep:
        return state_at(layer, layer.offset)
    window = RotatingKVCache.merge([layer]).extract(0)
    # A batch forgets it.
    window.keep = layer.keep
    return window


def can_branch(layer: Any) -> bool:
    """Whether it keeps keys and values and nothing else, of all tokens or of the last ones."""
    return type(layer) is KVCache or (type(layer) is RotatingKVCache and not layer.keep)


def ordered(layer: Any) -> tuple[KVCache, int]:
    """The keys and values of a layer that can branch, in the order of their tokens, and of how many tokens: its own
    cache where that is one of all tokens, a copy of a window's."""
    if isinstance(layer, KVCache):
        return layer, int(layer.offset)
    if layer.empty():
        return KVCache(), 0
    window = _copy_window(layer)
    length = int(window.keys.shape[2])
    return KVCache.from_state((window.keys, window.values, length)), length


def leaves(layers: Layers) -> Iterator[Any]:
    """The caches that hold arrays themselves: a layer may have several."""
    for layer in layers:
        if isinstance(layer, CacheList):
            yield from leaves(layer.caches)
        else:
            yield layer


def window_size(layer: Any) -> int | None:
    """Tokens that a layer keeps at most; None for layers that keep all of them, or a state instead."""
    if isinstance(layer, ChunkedKVCache):
        return int(layer.chunk_size)
    return int(layer.max_size) if isinstance(layer, RotatingKVCache) else None


def is_recurrent(layer: Any) -> bool:
    """Whether its size does not depend on the number of tokens."""
    return isinstance(layer, ArraysCache)


def bytes_per_token(layer: Any, tokens: int) -> int:
    """Of a layer that holds `tokens`. A buffer of keys and values is larger than its tokens, so this is then its size
    by its length."""
    keys = getattr(layer, "keys", None)
    return int(layer.nbytes) // int(tokens if keys is None else keys.shape[2])


# ---- attention. MLX 0.32.4 wants keys for each row of queries. When they are the same for all rows, the queries of all
# rows are as well one row, whose kernel reads the keys once. It can go when MLX finds that out by itself.

# By the id of an array of keys or values that is a view for each row: that view, and the one row behind it.
SharedRows = dict[int, tuple[mx.array, mx.array]]


@contextlib.contextmanager
def folded_attention(shared: SharedRows) -> Iterator[None]:
    """Meanwhile a model's attention over keys and values that are `shared` is computed in one row; its caches may add
    to them."""
    attention: Any = mx.fast.scaled_dot_product_attention

    def folded(queries: mx.array, keys: mx.array, values: mx.array, *, mask: Any = None, **others: Any) -> mx.array:
        rows, heads, tokens, _ = queries.shape
        is_shared = id(keys) in shared and id(values) in shared
        if rows == 1 or not is_shared or not isinstance(mask, mx.array) or mask.shape[:-3] != (rows,):
            each: mx.array = attention(queries, keys, values, mask=mask, **others)
            return each
        (_, keys), (_, values) = shared[id(keys)], shared[id(values)]
        one: mx.array = attention(fold(queries), keys, values, mask=fold(mask), **others)
        return one.reshape(heads, rows, tokens, -1).transpose(1, 0, 2, 3)

    mx.fast.scaled_dot_product_attention = folded  # type: ignore[assignment]
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = attention


def fold(array: mx.array) -> mx.array:
    """(rows, heads, tokens, width) to (1, heads, rows * tokens, width)."""
    rows, heads, tokens, width = array.shape
    return array.transpose(1, 0, 2, 3).reshape(1, heads, rows * tokens, width)


# ---- mixtures of experts. mlx-lm 0.32.2: `SwitchGLU` has gate and up apart, and sorts tokens by expert with private
# functions, from so many on. It can go when mlx-lm fuses them.

_SORTED_FROM = 64


def sorted_by_expert(
    x: mx.array, indices: mx.array
) -> tuple[mx.array, mx.array, Callable[[mx.array], mx.array] | None]:
    """What `SwitchGLU` gives its projections: tokens and experts, sorted where that pays, and then what undoes it."""
    x = mx.expand_dims(x, (-2, -3))
    if indices.size < _SORTED_FROM:
        return x, indices, None
    x, by_expert, inverse = switch_layers._gather_sort(x, indices)
    return x, by_expert, lambda made: switch_layers._scatter_unsort(made, inverse, indices.shape)


# ---- files. mlx-lm 0.32.2: `load_prompt_cache` builds all caches to give the metadata, and a start looks at thousands
# of files. It can go when mlx-lm reads the metadata alone.


def saved_metadata(path: Path) -> dict[str, Any]:
    """The metadata that was given to `save_prompt_cache`. Whatever is wrong with the file raises some exception."""
    loaded: Any = mx.load(str(path), return_metadata=True)
    metadata: dict[str, Any] = tree_unflatten(list(loaded[1].items()))[0]
    return metadata
