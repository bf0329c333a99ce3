"""What a pass keeps: whole arrays, and some rows of one without the rest."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

from quantize.forward.store import InFolder, InMemory, Store


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return InMemory() if request.param == "memory" else InFolder(tmp_path / "kept")


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("rows", [range(7), range(2, 5), range(3, 3)], ids=["all", "some", "none"])
def test_some_rows_are_those_of_the_whole(store: Store, dtype: mx.Dtype, rows: range) -> None:
    whole = mx.random.normal((7, 3, 2)).astype(dtype)
    store.put("key", {"other": mx.zeros((5,)), "array": whole})
    found = store.rows("key", "array", rows)
    assert found.dtype == dtype
    assert mx.array_equal(found, whole[rows.start : rows.stop])
