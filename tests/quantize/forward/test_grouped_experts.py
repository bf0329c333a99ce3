"""Experts multiplied one after the other against MLX's own gathered product."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear

from quantize.forward import grouped_experts
from quantize.forward.grouped_experts import GroupedExperts, group_experts
from quantize.forward.models import FolderModel, InFloat32
from tests.support.checkpoints import qwen3_moe, write

EXPERTS, COLUMNS, WIDTH, TOKENS = 6, 64, 96, 40


@pytest.fixture(autouse=True)
def _small_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(grouped_experts, "_LARGE", 1)
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_token", [1, 3])
@pytest.mark.parametrize("own_rows", [False, True], ids=["a row a token", "a row a choice"])
def test_each_row_meets_the_experts_that_it_is_sent_to(bias: bool, per_token: int, own_rows: bool) -> None:
    mx.random.seed(0)
    plain = SwitchLinear(COLUMNS, WIDTH, EXPERTS, bias=bias)
    if bias:
        plain.bias = mx.random.normal(plain.bias.shape)
    # Nobody is sent to the last one.
    chosen = mx.random.randint(0, EXPERTS - 1, (2, TOKENS, per_token))
    x = mx.random.normal((2, TOKENS, per_token if own_rows else 1, 1, COLUMNS))
    expected = plain(x, chosen)
    group_experts(nn.Sequential(plain))
    assert type(plain) is GroupedExperts
    found = plain(x, chosen)
    assert found.shape == expected.shape
    assert np.allclose(found, expected, atol=1e-5)


def test_a_whole_expert_layer_gives_what_it_gave() -> None:
    mx.random.seed(0)
    # As many choices as mlx-lm sorts by expert first.
    layer = SwitchGLU(COLUMNS, WIDTH, EXPERTS)
    x, chosen = mx.random.normal((1, TOKENS, COLUMNS)), mx.random.randint(0, EXPERTS, (1, TOKENS, 2))
    expected = layer(x, chosen)
    parameters = dict(layer.parameters())
    group_experts(layer)
    assert np.allclose(layer(x, chosen), expected, atol=1e-5)
    assert dict(layer.parameters()).keys() == parameters.keys()


def test_few_rows_are_left_to_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_experts, "_LARGE", 2**26)
    plain = SwitchLinear(COLUMNS, WIDTH, EXPERTS)
    x, chosen = mx.random.normal((1, 4, 1, 1, COLUMNS)), mx.random.randint(0, EXPERTS, (1, 4, 2))
    expected = plain(x, chosen)
    group_experts(nn.Sequential(plain))
    assert mx.array_equal(plain(x, chosen), expected)


def test_only_the_layer_that_is_run_is_grouped(tmp_path: Path) -> None:
    model = InFloat32(FolderModel(write(tmp_path, *qwen3_moe())))

    def grouped(made: Any) -> list[int]:
        return [
            number
            for number, layer in enumerate(made.layers)
            if any(isinstance(module, GroupedExperts) for _, module in layer.named_modules())
        ]

    # Where the model is only traced, none: what is called there is never evaluated.
    assert grouped(model.make(None)) == []
    assert grouped(model.make(1)) == [1]
