"""A guarded server with small limits, which must go on answering whatever a test sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running import Running, serving_script
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("guard") / "model")


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Running]:
    settings = {
        "header_timeout_s": 1, "body_timeout_s": 1, "max_body": 20_000,
        "allowed_hosts": ["my-mac.example"],
        "allowed_origins": ["https://app.example", "http://localhost:*", "http://[::1]:*"], "local_origins": False,
    }  # fmt: skip
    with serving_script(tmp_path_factory.mktemp("guard-server"), model, server=settings) as running:
        yield running


@pytest.fixture
def server(one_server: Running) -> Iterator[Running]:
    """After each case the next good request must still answer."""
    yield one_server
    one_server.assert_still_serves()
