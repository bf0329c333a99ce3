"""Memory is counted before a sequence starts: the arithmetic with integers, the real engine under a small limit."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from mlx_lm.utils import load_model

from server.engine.admission import HORIZON, Admission
from server.engine.cost_model import KVCostModel, measure
from server.engine_client.client import EngineClient
from server.engine_client.protocol import Finished, Generate, Sampling, Tokens
from server.errors import ContextLengthExceeded, InsufficientMemory
from server.settings.types import CacheSettings, Settings
from tests.support.engines import running_engine
from tests.support.sliding_model import WINDOW, write_sliding_model
from tests.support.tiny_model import write_tiny_model

GEMMA_4_26B = KVCostModel(per_token=20 * 1024, windows=((200 * 1024, 1024),), constant=0, activation_per_token=100_000)


def request(prompt: int, max_tokens: int = 8) -> Generate:
    return Generate(
        id=1, prompt=[70] * prompt, max_tokens=max_tokens, stop_tokens=[], sampling=Sampling(seed=0, temperature=0)
    )


def test_buffers_of_keys_and_values_grow_by_256_tokens() -> None:
    cost = KVCostModel(1000, (), 0, 0)
    assert [cost.kv_bytes(tokens) for tokens in (0, 1, 256, 257)] == [0, 256_000, 256_000, 512_000]


def test_what_a_chunk_takes_grows_with_the_context_behind_it() -> None:
    cost = KVCostModel(1000, ((50, 100),), 0, 7, per_score=2, per_window_score=3, per_context=500)
    # With nothing behind it: activations, a window that holds the chunk, its scores, and the copy of a layer.
    assert cost.chunk_bytes(10, 0) == 10 * (7 + 50 + 3 * 10) + 500 * 10
    assert cost.chunk_bytes(10, 10_000) == 10 * (7 + 50 + 2 * 10_010) + 500 * 10_010


def test_a_sliding_window_stops_growing_at_its_size() -> None:
    mib = 2**20
    assert GEMMA_4_26B.kv_bytes(1024) == (20 + 200) * mib
    assert GEMMA_4_26B.kv_bytes(10 * 1024) == (200 + 200) * mib


def test_the_cost_model_is_that_of_real_caches(tmp_path: Path) -> None:
    model, _ = load_model(write_sliding_model(tmp_path / "model"))
    cost = measure(model)
    # Two sliding layers of 2 heads of 16, one full layer of 1 head of 32: keys and values, float32.
    assert cost.per_token == 1 * 32 * 2 * 4
    assert cost.windows == ((2 * 16 * 2 * 4, WINDOW),) * 2
    assert cost.activation_per_token > 0


def test_what_is_asked_for_counts_up_to_the_horizon_only() -> None:
    admission = Admission(limit=10**9, weights=0, cost=KVCostModel(1000, (), 0, 0))
    kv_bytes = admission.cost.kv_bytes
    assert admission.reserved([(request(100, max_tokens=10**6), 100)]) == kv_bytes(100 + HORIZON)
    assert admission.reserved([(request(100, max_tokens=20), 100)]) == kv_bytes(120)
    assert admission.reserved([(request(100, max_tokens=10**6), 5000)]) == kv_bytes(5000 + HORIZON)


def test_a_prompt_that_is_being_read_counts_as_long_as_it_will_be() -> None:
    admission = Admission(limit=10**9, weights=7, cost=KVCostModel(1000, (), 0, 0, per_context=500))
    begun, read, short = (request(5000), 10), (request(5000), 5000), (request(20), 20)
    assert admission.ahead([begun, short]) == admission.ahead([read, short])
    limit = admission.ahead([read, short])
    assert Admission(limit * 2, 7, admission.cost).fits(short[0], [begun])
    assert not Admission(limit, 7, admission.cost).fits(short[0], [begun])


def test_a_short_sequence_beside_a_long_one_counts_as_long_for_batches_are_padded() -> None:
    admission = Admission(limit=10**9, weights=7, cost=KVCostModel(1000, (), 0, 0))
    assert admission.reserved([(request(100), 100), (request(5000), 5000)]) == 7 + 2 * admission.cost.kv_bytes(5008)


def test_one_that_does_not_fit_beside_others_fits_alone() -> None:
    admission = Admission(limit=10**6, weights=0, cost=KVCostModel(1000, (), 0, 0))
    assert admission.fits(request(600), [])
    assert not admission.fits(request(600), [(request(400), 400)])
    assert admission.refusal(request(600)) is None
    assert admission.refusal(request(2000)) == (
        "The prompt of 2000 tokens needs 2.0 MB of memory beside the model; 0.8 MB is available."
    )


@pytest.mark.parametrize(
    "cost",
    [
        KVCostModel(1000, (), 0, 10),
        GEMMA_4_26B,
        KVCostModel(0, ((10, 64),), 500, 10),
        KVCostModel(7, (), 0, 10**9),
    ],
    ids=["full attention", "sliding windows", "no growth", "no room"],
)
def test_the_longest_prompt_is_the_last_that_is_not_refused(cost: KVCostModel) -> None:
    admission = Admission(limit=10**9, weights=10**8, cost=cost)
    most = admission.most_tokens
    # Where nothing grows, and where nothing fits, there is no such border.
    assert (most == 0) == (admission.refusal(request(0)) is not None)
    assert admission.refusal(request(min(most, 10**6))) is None or most == 0
    if 0 < most < 10**7:
        assert admission.refusal(request(most + 1)) is not None


def engine_with(folder: Path, room: int) -> AbstractAsyncContextManager[EngineClient]:
    """`room` bytes beside the weights."""
    weights = (folder / "model.safetensors").stat().st_size
    settings = Settings(cache=CacheSettings.model_validate({"disk_limit": 0}))
    return running_engine(folder, settings, memory_limit=weights + room)


async def finished(engine: EngineClient, *requests: Generate) -> int:
    return sum([isinstance(event, Finished) async for _, event in engine.generate(requests)])


# Of the tiny model: two layers of 2 heads of 16, keys and values, float32.
PER_TOKEN = 2 * 2 * 16 * 2 * 4


def test_a_prompt_that_can_never_fit_is_refused_with_the_numbers(tmp_path: Path) -> None:
    async def run() -> None:
        async with engine_with(write_tiny_model(tmp_path / "model"), room=1400 * PER_TOKEN) as engine:
            with pytest.raises(ContextLengthExceeded, match=r"prompt of 1500 tokens needs .* MB of memory"):
                await finished(engine, request(1500))
            assert await finished(engine, request(50)) == 1
            # What it tells of itself is what it refuses by.
            assert engine.most_tokens is not None and 50 < engine.most_tokens < 1500
            assert await finished(engine, request(engine.most_tokens, max_tokens=1)) == 1
            with pytest.raises(ContextLengthExceeded):
                await finished(engine, request(engine.most_tokens + 1))

    asyncio.run(run())


def test_what_cannot_fit_now_waits_its_turn_and_is_answered(tmp_path: Path) -> None:
    async def run() -> None:
        async with engine_with(write_tiny_model(tmp_path / "model"), room=6000 * PER_TOKEN) as engine:
            running = 0
            answered = 0
            async for _, event in engine.generate([request(600) for _ in range(6)]):
                running = max(running, engine.stats.running if engine.stats else 0)
                answered += isinstance(event, Finished)
            assert answered == 6
            assert running < 6

    asyncio.run(run())


def test_a_sequence_that_outgrows_the_memory_is_one_error_and_the_next_is_answered(tmp_path: Path) -> None:
    async def run() -> None:
        folder = write_tiny_model(tmp_path / "model", context=100_000)
        async with engine_with(folder, room=4000 * PER_TOKEN) as engine:
            made = 0
            with pytest.raises(InsufficientMemory, match="ran out of memory"):
                async for _, event in engine.generate([request(50, max_tokens=50_000)]):
                    made += isinstance(event, Tokens)
            assert made > HORIZON
            assert await finished(engine, request(50)) == 1

    asyncio.run(run())
