"""What the real engine process answers with a tiny real model, through the supervisor and its client."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Coroutine, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models import llama
from mlx_lm.utils import load_model

from server.engine.loading import vocabulary_size
from server.engine_client.client import EngineClient
from server.engine_client.protocol import (
    Boundary,
    Finished,
    Prefilled,
    PromptScored,
    Sampling,
    TokenLogprob,
    Tokens,
)
from server.errors import InvalidRequest
from tests.support.engines import (
    PROMPT,
    RunWith,
    engine_settings,
    generate,
    kept_engine,
    running_engine,
    tokens,
)
from tests.support.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("engine") / "model")


@pytest.fixture(scope="module")
def shared(model: Path) -> Iterator[RunWith]:
    """Calls a test with an engine that is not its own."""
    with kept_engine(model, engine_settings()) as run:
        yield run


def test_an_answer_that_nobody_goes_on_from_is_not_kept(model: Path) -> None:
    prompt = [70 + at % 40 for at in range(60)]

    async def cached(engine: EngineClient, **fields: Any) -> list[int]:
        """What the second and the third request find: the same prompt, and the same with its answer."""
        boundaries = [Boundary(40, "user")]
        [answer] = await tokens(engine, generate(prompt, boundaries=boundaries, **fields))
        found = []
        for again in (prompt, [*prompt, *answer, 70]):
            with contextlib.closing(engine.generate([generate(again, max_tokens=1, **fields)])) as stream:
                found.append(max([event.cached async for _, event in stream if isinstance(event, Prefilled)]))
        return found

    async def run() -> None:
        async with running_engine(model, engine_settings()) as engine:
            assert await cached(engine, keep_answer=False, cache_salt="a") == [40, 59]
            assert await cached(engine, cache_salt="b") == [59, 76]

    asyncio.run(run())


def with_engine(model: Path, test: Callable[[EngineClient], Coroutine[Any, Any, None]], **settings: Any) -> None:
    async def run() -> None:
        async with running_engine(model, engine_settings(**settings)) as engine:
            await test(engine)

    asyncio.run(run())


def test_greedy_output_is_that_of_the_raw_model(model: Path, shared: RunWith) -> None:
    raw, _ = load_model(model)
    expected: list[int] = []
    for _ in range(16):
        logits = raw(mx.array([PROMPT + expected]))
        expected.append(int(mx.argmax(logits[0, -1]).item()))

    async def test(engine: EngineClient) -> None:
        assert await tokens(engine, generate()) == [expected]

    shared(test)


def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(shared: RunWith) -> None:
    sampled = generate(sampling=Sampling(seed=42, temperature=1.2, top_p=0.95, top_k=50, min_p=0.01))

    async def test(engine: EngineClient) -> None:
        [alone] = await tokens(engine, sampled)
        others = [generate(range(30, 30 + n), Sampling(seed=n), max_tokens=5 + n) for n in (3, 40, 9)]
        crowded = await tokens(engine, others[0], sampled, *others[1:])
        assert crowded[1] == alone
        [other_seed] = await tokens(engine, generate(sampling=Sampling(seed=43, temperature=1.2)))
        assert other_seed != alone

    shared(test)


def test_more_requests_than_slots_all_finish(model: Path) -> None:
    async def test(engine: EngineClient) -> None:
        made = await tokens(engine, *[generate(max_tokens=n) for n in range(1, 10)])
        assert [len(m) for m in made] == list(range(1, 10))

    with_engine(model, test, max_concurrent=2)


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(shared: RunWith) -> None:
    async def test(engine: EngineClient) -> None:
        [free] = await tokens(engine, generate())
        stop = free[4]
        events = [e async for _, e in engine.generate([generate(stop_tokens=[stop])])]
        made = [t for e in events if isinstance(e, Tokens) for t in e.tokens]
        assert made == free[: free.index(stop)]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason == "stop"

    shared(test)


def test_bias_and_penalties_change_what_is_drawn(shared: RunWith) -> None:
    async def test(engine: EngineClient) -> None:
        [forced] = await tokens(engine, generate(sampling=Sampling(seed=0, temperature=0, logit_bias={77: 100})))
        assert set(forced) == {77}
        bias = {77: 50.0, 78: 49.0}
        for penalty in ("presence_penalty", "frequency_penalty"):
            sampling = Sampling(seed=0, temperature=0, logit_bias=bias, **{penalty: 2.0})
            [made] = await tokens(engine, generate(sampling=sampling, max_tokens=2))
            assert len(set(made)) == 2, penalty
        sampling = Sampling(seed=0, temperature=0, logit_bias={PROMPT[0]: 50.0, 78: 40.0}, repetition_penalty=2.0)
        [made] = await tokens(engine, generate(sampling=sampling, max_tokens=1))
        assert made == [78], "the repetition penalty counts the prompt's tokens too"

    shared(test)


def test_logprobs_of_answer_and_prompt_are_those_of_the_model(model: Path, shared: RunWith) -> None:
    raw, _ = load_model(model)

    async def test(engine: EngineClient) -> None:
        request = generate(top_logprobs=3, prompt_logprobs=True, max_tokens=4)
        events = [e async for _, e in engine.generate([request])]
        [scored] = [e for e in events if isinstance(e, PromptScored)]
        answer = [lp for e in events if isinstance(e, Tokens) for lp in e.logprobs]
        made = [lp.token for lp in answer]
        logits = raw(mx.array([PROMPT + made])).astype(mx.float32)[0]
        reference = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        said: list[TokenLogprob] = scored.logprobs + answer
        assert [lp.token for lp in said] == (PROMPT + made)[1:]
        for position, logprob in enumerate(said):
            assert logprob.logprob == pytest.approx(reference[position, logprob.token].item(), abs=1e-3)
            assert len(logprob.top) == 3
            assert logprob.top[0][1] == pytest.approx(reference[position].max().item(), abs=1e-3)

    shared(test)


def test_scoring_the_prompt_does_not_change_the_answer(shared: RunWith) -> None:
    prompt = [30 + i % 300 for i in range(300)]

    async def test(engine: EngineClient) -> None:
        plain, scored = await tokens(engine, generate(prompt), generate(prompt, prompt_logprobs=True, top_logprobs=0))
        assert plain == scored

    shared(test)


def test_progress_of_a_long_prompt_is_told_chunk_by_chunk(model: Path) -> None:
    async def test(engine: EngineClient) -> None:
        events = [e async for _, e in engine.generate([generate([50] * 200, max_tokens=1)])]
        progress = [e.done for e in events if isinstance(e, Prefilled)]
        assert progress == sorted(progress)
        assert progress[-1] == 199
        chunks = [after - before for before, after in pairwise(progress)]
        assert len(chunks) > 3
        assert max(chunks) == 64
        assert all(e.total == 200 for e in events if isinstance(e, Prefilled))

    with_engine(model, test, prefill_step_tokens=64)


@pytest.mark.parametrize("fields", [{"prompt": [448]}, {"sampling": Sampling(seed=0, logit_bias={99999: 1.0})}])
def test_a_token_outside_the_vocabulary_is_refused_and_the_next_request_served(
    shared: RunWith, fields: dict[str, Any]
) -> None:
    async def test(engine: EngineClient) -> None:
        with pytest.raises(InvalidRequest, match="vocabulary has 448 tokens"):
            await tokens(engine, generate(**fields))
        assert await tokens(engine, generate(max_tokens=1))

    shared(test)


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_the_vocabulary_is_that_of_the_weights_whatever_the_config_claims(tied: bool, bits: int | None) -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "num_attention_heads": 2}
    claimed = llama.ModelArgs("llama", rms_norm_eps=1e-5, vocab_size=50_000, tie_word_embeddings=tied, **sizes)
    model = llama.Model(claimed)
    model.model.embed_tokens.weight = mx.zeros((448, 64))
    if not tied:
        model.lm_head.weight = mx.zeros((320, 64))
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
    assert vocabulary_size(model) == (448 if tied else 320)


def test_a_config_that_claims_more_tokens_than_there_are_gives_no_foreign_memory(tmp_path: Path) -> None:
    """mlx-lm reads the text model's own table; what stands beside it is only a claim, and was believed."""
    folder = write_tiny_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    outer = {"model_type": "mistral3", "vocab_size": 50_000_000, "text_config": config}
    (folder / "config.json").write_text(json.dumps(outer))
    weights = mx.load(str(folder / "model.safetensors"))
    prefixed = {f"language_model.{name}": value for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), prefixed, metadata={"format": "mlx"})

    async def test(engine: EngineClient) -> None:
        for fields in ({"prompt": [4_000_000]}, {"sampling": Sampling(seed=0, logit_bias={40_000_000: 5.0})}):
            with pytest.raises(InvalidRequest, match="vocabulary has 448 tokens"):
                await tokens(engine, generate(**fields))
        assert await tokens(engine, generate(max_tokens=1))

    with_engine(folder, test)


def test_a_cancelled_request_frees_its_slot_for_the_next(model: Path) -> None:
    async def test(engine: EngineClient) -> None:
        stream = engine.generate([generate(max_tokens=100_000)])
        await anext(stream)
        stream.close()
        async with asyncio.timeout(10):
            [made] = await tokens(engine, generate(max_tokens=2))
        assert len(made) == 2

    with_engine(model, test, max_concurrent=1)
