"""The context that a model was made for, through the whole server; the settings may lower and raise it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.running import Running, running_script
from tests.support.tiny_model import write_tiny_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# What config.json says beside the tiny model's own, and what the settings say.
MODELS: dict[str, tuple[dict[str, Any], int | None, int]] = {
    "stated": ({"max_position_embeddings": 64}, None, 64),
    "yarn": ({"max_position_embeddings": 64, "rope_scaling": YARN}, None, 256),
    "linear": ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 2.0}}, None, 128),
    "lowered": ({"max_position_embeddings": 64}, 32, 32),
    "raised": ({"max_position_embeddings": 64}, 100, 100),
    "large": ({"max_position_embeddings": 64, "comment": "x" * 100_000}, None, 64),
    # LlamaConfig's default.
    "left to the class": ({"max_position_embeddings": None}, None, 2048),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("contexts")
    lines = ["[server]", "port = 0", "[cache]", "disk_limit = 0"]
    for name, (values, configured, _) in MODELS.items():
        # The tokenizer's own limit does not count beside a model's.
        model = write_tiny_model(folder / name, context=16)
        config = json.loads((model / "config.json").read_text()) | values
        given = {key: value for key, value in config.items() if value is not None}
        (model / "config.json").write_text(json.dumps(given))
        lines += ["[[models]]", f'id = "{name}"', 'acquire = "local"', f'path = "{model}"']
        lines += [f"context_length = {configured}"] if configured else []
    (folder / "config.toml").write_text("\n".join(lines) + "\n")
    with running_script(folder / "config.toml", ["--real"], folder) as started:
        yield started


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_may_be_as_long_as_the_model_was_made_for(name: str, server: Running) -> None:
    context = MODELS[name][2]
    fits = {"model": name, "prompt": [40] * (context - 1), "max_tokens": 1}
    assert server.post("/v1/completions", fits)[0] == 200
    status, answer = server.post("/v1/completions", fits | {"prompt": [40] * (context + 1)})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert server.get(f"/v1/models/{name}".replace(" ", "%20"))[1]["context_length"] == context


def test_more_than_it_was_made_for_is_served_with_a_warning(server: Running) -> None:
    assert server.post("/v1/completions", {"model": "raised", "prompt": "a", "max_tokens": 1})[0] == 200
    warnings = [line for line in server.log.read_text().splitlines() if "was made for" in line]
    assert len(warnings) == 1
    assert "model raised: context_length = 100 is more than the 64 tokens that it was made for" in warnings[0]
