"""What the engine relies on in MLX and mlx-lm beyond their documentation. A failure here after an upgrade names what to
change in `server/engine/compat.py`."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.generate import PromptProcessingBatch
from mlx_lm.models import cache
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
    ChunkedKVCache,
    ConcatenateKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
    save_prompt_cache,
)
from mlx_lm.utils import load_model
from packaging.requirements import Requirement

from server.engine import compat
from tests.support.running import ROOT
from tests.support.tiny_model import write_tiny_model

HEADS, HEAD_DIM, WINDOW = 2, 4, 8


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def filled(layer: Any, *chunks: int) -> Any:
    """`layer` after chunks of so many tokens; token i has the key i and the value -i."""
    position = 0
    for size in chunks:
        ids = mx.arange(position, position + size, dtype=mx.float32)[None, None, :, None]
        keys = mx.broadcast_to(ids, (1, HEADS, size, HEAD_DIM))
        layer.update_and_fetch(keys, -keys)
        position += size
    return layer


def held(layer: Any) -> list[int]:
    """The tokens that the buffers hold, in their order; keys and values must agree."""
    keys, values = layer.keys[0, 0, :, 0], layer.values[0, 0, :, 0]
    assert mx.array_equal(keys, -values)
    return [int(key) for key in keys.tolist()]  # type: ignore[union-attr]


@pytest.mark.parametrize("package", ["mlx", "mlx-lm"])
def test_the_packages_have_an_upper_bound(package: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [Requirement(line) for line in project["dependencies"]]
    found = [bound for bound in bounds if bound.name == package]
    assert found
    assert all(any(part.operator == "<" for part in bound.specifier) for bound in found)


def test_the_batches_take_and_have_what_the_engine_uses() -> None:
    assert parameters(PromptProcessingBatch)[:5] == ["model", "uids", "caches", "tokens", "prefill_step_size"]
    for kind in (BatchKVCache, BatchRotatingKVCache, ArraysCache):
        assert [parameters(getattr(kind, name)) for name in ("extend", "extract")] == [["other"], ["idx"]]
        assert parameters(kind.filter) == ["batch_indices"]


def test_prompts_of_different_lengths_are_read_together_as_alone(tmp_path: Path) -> None:
    model, _ = load_model(write_tiny_model(tmp_path / "model"))
    chunks = [[70, 80, 90, 100], [110, 120]]
    together = compat.prefill_together(model, [make_prompt_cache(model) for _ in chunks], chunks)
    for chunk, layers in zip(chunks, together, strict=True):
        alone = make_prompt_cache(model)
        model(mx.array([chunk]), cache=alone)
        for got, reference in zip(layers, alone, strict=True):
            assert got.size() == len(chunk)
            assert mx.allclose(got.keys_and_values()[0], reference.keys_and_values()[0], atol=1e-4)


def test_only_plain_kv_caches_are_trimmable_everywhere() -> None:
    assert compat.is_trimmable(KVCache())
    assert compat.is_trimmable(CacheList(KVCache(), KVCache()))
    mixed = CacheList(ArraysCache(1), KVCache())
    others = [RotatingKVCache(8), ChunkedKVCache(8), QuantizedKVCache(), ConcatenateKVCache(), ArraysCache(1), mixed]
    assert not any(map(compat.is_trimmable, others))
    # The reason for asking the type: mlx-lm's own answer is another question's.
    assert RotatingKVCache(8).is_trimmable()


def test_a_kv_cache_is_cut_and_joined_by_its_state() -> None:
    layer = filled(KVCache(), 300, 1, 4)
    assert len(layer.state) == 3
    parts = [compat.cut(layer, 2, 5), compat.cut(layer, 299, 303)]
    assert [held(part) for part in parts] == [[2, 3, 4], [299, 300, 301, 302]]
    assert [part.size() for part in parts] == [3, 4]
    joined = compat.join([(part, 0, part.size()) for part in parts])
    assert (type(joined), held(joined), joined.size()) == (KVCache, [2, 3, 4, 299, 300, 301, 302], 7)
    assert compat.bytes_per_token(layer, 305) == HEADS * HEAD_DIM * 2 * 4


def test_a_layer_of_several_kv_caches_is_cut_and_joined_as_each_of_them() -> None:
    layer = CacheList(filled(KVCache(), 300, 1, 4), filled(KVCache(), 305))
    joined = compat.join([(layer, 2, 4), (layer, 299, 301)])
    assert [held(part) for part in joined.caches] == [[2, 3, 299, 300]] * 2
    assert [type(leaf) for leaf in compat.leaves([layer, ArraysCache(1)])] == [KVCache, KVCache, ArraysCache]


def test_a_chunked_layer_is_copied_with_its_place_in_the_text() -> None:
    layer = filled(ChunkedKVCache(WINDOW), 5, 6)
    layer.maybe_trim_front()
    copied = compat.copy(layer)
    layer.keys[:] = 7.0
    assert (copied.offset, copied.start_position, compat.window_size(copied)) == (11, 11 - WINDOW, WINDOW)
    assert held(copied)[:WINDOW] == list(range(11 - WINDOW, 11))


def test_a_cache_class_of_an_architecture_is_copied_but_not_stored() -> None:
    class OwnCache:
        def __init__(self) -> None:
            self.offset, self.rows = 2, mx.zeros(3)

    layer = OwnCache()
    copied = compat.copy(layer)
    layer.rows[0] = 7.0
    assert (copied.offset, copied.rows.tolist()) == (2, [0.0, 0.0, 0.0])
    assert not compat.is_storable(layer)
    assert compat.is_storable(ChunkedKVCache(8))


@pytest.mark.parametrize("chunks", [(3,), (8,), (5, 1, 1, 1, 1, 1), (20,), (20, 1, 1), (6, 9)])
def test_a_copied_window_holds_its_last_tokens_in_order_and_goes_on_as_the_original(chunks: tuple[int, ...]) -> None:
    layer = filled(RotatingKVCache(WINDOW), *chunks)
    count = sum(chunks)
    copied = compat.copy(layer)
    assert compat.window_size(copied) == WINDOW
    assert held(copied) == list(range(max(0, count - WINDOW), count))
    assert (copied.offset, copied.keep) == (count, layer.keep)
    following = mx.full((1, HEADS, 3, HEAD_DIM), 99.0)
    seen = [mx.sort(entry.update_and_fetch(following, -following)[0], axis=2) for entry in (copied, layer)]
    # A longer buffer holds tokens that the mask rules out.
    length = min(part.shape[2] for part in seen)
    assert mx.array_equal(seen[0][..., -length:, :], seen[1][..., -length:, :])


def test_an_empty_window_and_nested_and_recurrent_layers_are_copied_without_sharing() -> None:
    assert compat.copy(RotatingKVCache(WINDOW)).empty()
    recurrent = ArraysCache(1)
    recurrent[0] = mx.zeros((1, 2))
    nested = CacheList(filled(KVCache(), 3), recurrent)
    copied = compat.copy(nested)
    filled(nested[0], 1)
    recurrent[0][0, 0] = 7.0
    assert held(copied[0])[:3] == [0, 1, 2]
    assert copied[1][0].tolist() == [[0.0, 0.0]]


def test_the_metadata_of_a_saved_cache_can_be_read_alone(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    save_prompt_cache(str(path), [filled(KVCache(), 3)], {"tokens": "[1, 2, 3]", "kind": "user"})
    assert compat.saved_metadata(path) == {"tokens": "[1, 2, 3]", "kind": "user"}


def test_a_file_that_exists_keeps_its_mode_when_a_cache_is_saved_into_it(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    path.touch(mode=0o600)
    save_prompt_cache(str(path), [filled(KVCache(), 3)], {})
    assert path.stat().st_size > 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_caches_that_a_batch_needs_can_be_merged() -> None:
    for name in ("KVCache", "RotatingKVCache", "ArraysCache", "CacheList"):
        assert callable(getattr(cache, name).merge)


def test_only_layers_of_keys_and_values_can_branch_and_a_window_does_in_the_order_of_its_tokens() -> None:
    full, window = filled(KVCache(), 20), filled(RotatingKVCache(WINDOW), 5, 1, 9, 1, 1)
    others = (RotatingKVCache(WINDOW, keep=2), ChunkedKVCache(WINDOW), ArraysCache(2), CacheList(KVCache()))
    assert compat.can_branch(full) and compat.can_branch(window)
    assert not any(map(compat.can_branch, others))
    assert compat.ordered(full) == (full, 20)
    columns, length = compat.ordered(window)
    assert (held(columns), length) == ([*range(17 - WINDOW, 17)], WINDOW)
    assert compat.ordered(RotatingKVCache(WINDOW))[1] == 0


def test_attention_over_shared_keys_is_that_over_a_copy_for_each_row() -> None:
    mx.random.seed(0)
    queries = mx.random.normal((3, 2 * HEADS, 5, HEAD_DIM))
    keys, values = mx.random.normal((2, 1, HEADS, 9, HEAD_DIM))
    mask = mx.random.uniform(shape=(3, 1, 5, 9)) > 0.5
    mask[..., 0] = True
    attention: Any = mx.fast.scaled_dot_product_attention
    views = [mx.broadcast_to(array, (3, *array.shape[1:])) for array in (keys, values)]
    expected = attention(queries, *views, scale=0.5, mask=mask)

    shared = {id(view): (view, array) for view, array in zip(views, (keys, values), strict=True)}
    with compat.folded_attention(shared):
        folded: Any = mx.fast.scaled_dot_product_attention
        assert mx.allclose(folded(queries, *views, scale=0.5, mask=mask), expected, atol=1e-5)
        # What is not shared is left as it is: other rows of keys, and values that a model makes of them itself.
        own = mx.random.normal(views[0].shape)
        for pair in ((own, views[1]), (views[0], own)):
            assert mx.allclose(
                folded(queries, *pair, scale=0.5, mask=mask), attention(queries, *pair, scale=0.5, mask=mask), atol=1e-5
            )
    assert mx.fast.scaled_dot_product_attention is attention


def test_attention_is_what_it_was_after_a_model_that_fails() -> None:
    attention = mx.fast.scaled_dot_product_attention
    with pytest.raises(ValueError, match="no model"), compat.folded_attention({}):
        raise ValueError("no model")
    assert mx.fast.scaled_dot_product_attention is attention
