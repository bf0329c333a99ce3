"""What a pass keeps: whole arrays, and some rows of one without the rest."""

from __future__ import annotations

import resource
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


def test_what_cannot_be_written_is_an_os_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    store = InFolder(tmp_path)
    store.put("a", {"x": mx.ones((4,))})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"a\.safetensors"):
            store.put("a", {"x": mx.zeros((100_000,))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    assert store.get("a")["x"].tolist() == [1, 1, 1, 1]
