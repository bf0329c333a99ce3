"""GET /v1/models, as clients ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import pytest

from tests.support.scripted_service import MODEL, Running, ScriptedService, running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedService()) as up:
        yield up


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models?limit=1000", "/v1/models?", "/models"])
def test_models_are_listed_whatever_the_query(server: Running, path: str) -> None:
    listed = server.send("GET", path).json()
    assert listed["object"] == "list"
    model = listed["data"][0]
    assert datetime.fromisoformat(model.pop("created_at")).timestamp() == model.pop("created")
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == (MODEL, MODEL, False)
    assert model == {
        "id": MODEL,
        "object": "model",
        "owned_by": "configi",
        "type": "model",
        "display_name": MODEL,
        "lifecycle": "active",
        "max_input_tokens": 4096,
        "root": MODEL,
        "max_model_len": 4096,
        "state": "ready",
        "text": server.service.state.text,
        "done": 0,
        "total": None,
        "bytes_per_second": None,
        "seconds_left": None,
        "context_length": 4096,
        "context_length_now": None,
        "batched": None,
        "warning": None,
    }


@pytest.mark.parametrize("name", ["org/tiny-model", "org%2Ftiny-model", "gpt-4o"])
def test_a_model_is_found_by_id_with_a_slash_and_by_alias(server: Running, name: str) -> None:
    assert server.send("GET", f"/v1/models/{name}").json()["id"] == MODEL
