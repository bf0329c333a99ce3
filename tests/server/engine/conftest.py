"""Two real models: one whose layers are all trimmable, and a Gemma 4 with sliding windows far shorter than prompts."""

from __future__ import annotations

import pytest
from mlx_lm.utils import load_model

from tests.support.little_memory import LAYERS, deep_model
from tests.support.sliding_model import write_sliding_model
from tests.support.talks import Model
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="session", params=["trimmable", "sliding"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / request.param
    (write_tiny_model if request.param == "trimmable" else write_sliding_model)(folder)
    return Model(folder, load_model(folder)[0])


@pytest.fixture(scope="session")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_sliding_model(tmp_path_factory.mktemp("models") / "sliding")
    return Model(folder, load_model(folder)[0])


@pytest.fixture(scope="session", params=LAYERS)
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return deep_model(tmp_path_factory.mktemp("models") / request.param, request.param)
