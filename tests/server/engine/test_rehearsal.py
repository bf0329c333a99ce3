"""Before a model counts as loaded it has answered; what cannot share a forward pass is served all the same."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from server.engine.cost_model import measure
from server.engine.loading import LoadError, load
from server.engine.rehearsal import Together, rehearse
from server.engine_client.protocol import Generate, Sampling, Tokens
from server.engine_client.supervisor import Supervisor
from server.errors import ModelUnavailable
from server.settings.types import EngineSettings, Settings, StorageSettings
from tests.support.architecture_run import bare, prompt
from tests.support.architectures import write_architecture
from tests.support.running import serving
from tests.support.tiny_model import write_tiny_model


def rehearsed(folder: Path) -> Together:
    model, vocab_size, _ = load(folder)
    return rehearse(model, vocab_size)


@pytest.mark.parametrize(
    ("architecture", "together"),
    [
        ("llama", Together(prefill=True, decode=True)),
        # Its recurrent state would take in the padding behind a shorter prompt.
        ("mamba", Together(prefill=False, decode=True)),
        # Its caches cannot be merged.
        ("llama4", Together(prefill=False, decode=False)),
        # Two sequences and two key-value heads: its mask would fit, and be wrong.
        ("gemma2", Together(prefill=False, decode=False)),
    ],
)
def test_what_a_model_can_do_for_several_sequences_at_once(
    architecture: str, together: Together, tmp_path: Path
) -> None:
    assert rehearsed(write_architecture(tmp_path, architecture)) == together


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_model_whose_logits_are_not_numbers_is_refused(damage: float, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    weights: Any = mx.load(str(folder / "model.safetensors"))
    weights["lm_head.weight"][7, 7] = damage
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    with pytest.raises(LoadError, match="do not give numbers"):
        rehearsed(folder)


@pytest.mark.parametrize("architecture", ["llama4", "deepseek_v41"])
def test_what_cannot_be_batched_is_answered_side_by_side(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_architecture(tmp_path / "model", architecture)
    model, _ = load_model(folder)
    prompts = [prompt(length, length) for length in (21, 12, 5)]
    expected = [[token for token, _ in bare(model, tokens, 10)] for tokens in prompts]

    async def run() -> None:
        storage = StorageSettings(cache_dir=tmp_path / "cache")
        supervisor = Supervisor(Settings(engine=EngineSettings(max_concurrent=2), storage=storage))
        try:
            engine = await supervisor.start(folder)
            assert not engine.batched
            sampling = Sampling(seed=0, temperature=0)
            requests = [Generate(id=0, prompt=p, max_tokens=10, stop_tokens=[], sampling=sampling) for p in prompts]
            made: list[list[int]] = [[], [], []]
            async for index, event in engine.generate(requests):
                if isinstance(event, Tokens):
                    made[index] += event.tokens
            assert made == expected
        finally:
            await supervisor.stop()

    with caplog.at_level(logging.WARNING, "configi.engine"):
        asyncio.run(run())
    assert "cannot batch this architecture" in caplog.text


def test_the_server_says_of_a_model_that_it_is_not_batched(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    write_architecture(folder, "llama4")
    with serving(tmp_path, folder) as server:
        assert server.get("/v1/models/tiny")[1]["batched"] is None
        status, answer = server.post("/v1/completions", {"prompt": [5, 6, 7], "max_tokens": 3, "temperature": 0})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 3)
        assert server.get("/v1/models/tiny")[1]["batched"] is False


def test_an_architecture_that_ends_the_process_at_its_import_is_a_sentence(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "olmo"}))

    async def run() -> None:
        supervisor = Supervisor(Settings())
        try:
            with pytest.raises(ModelUnavailable, match="a package that is not installed"):
                await supervisor.start(folder)
        finally:
            await supervisor.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("architecture", "grows"), [("deepseek_v32", True), ("falcon_h1", True), ("mamba", False)])
def test_the_memory_of_a_sequence_is_counted_in_each_kind_of_layer(
    architecture: str, grows: bool, tmp_path: Path
) -> None:
    model, _ = load_model(write_architecture(tmp_path, architecture))
    cost = measure(model)
    layers = make_prompt_cache(model)
    for _ in range(8):
        model(mx.array([prompt(64, 1)]), cache=layers)
    mx.eval([layer.state for layer in layers])
    assert (cost.kv_bytes(512) > cost.kv_bytes(32)) == grows
    held = sum(layer.nbytes for layer in layers)
    assert 0.5 * held <= cost.kv_bytes(512) <= 1.5 * held
