"""Sequences that come and go while others decode: each answers as it does alone, on caches of its own when it is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from server.engine.batch import Answered, Batch
from server.engine.decoder import Decoder, Newcomer
from server.engine.float32_logits import Float32Logits
from server.engine_client.protocol import EngineEvent, Finished, Generate, Sampling, TokenLogprob, Tokens
from tests.support.talks import Model

VOCABULARY = 448
# Longer and shorter than the window of the sliding model.
LENGTHS = {1: 70, 2: 5, 3: 33}
ANSWERS = {1: 60, 2: 12, 3: 25}


def request(id: int, **fields: Any) -> Generate:
    prompt = [30 + (7 * id + at * at) % 400 for at in range(LENGTHS[id])]
    fields = {"sampling": Sampling(seed=id, temperature=0), "max_tokens": ANSWERS[id], "stop_tokens": []} | fields
    return Generate(id=id, prompt=prompt, **fields)


def sampled(id: int) -> Generate:
    return request(id, sampling=Sampling(seed=id, temperature=1.1, top_k=40, top_p=0.9), top_logprobs=id)


def penalised(id: int) -> Generate:
    """The one with id 2 asks for nothing."""
    penalties: Any = {1: {"repetition_penalty": 1.3, "logit_bias": {40: 3.0}}, 3: {"frequency_penalty": 1.5}}
    return request(id, sampling=Sampling(seed=id, temperature=0, **penalties.get(id, {})))


def read(model: Any, request: Generate) -> Newcomer:
    layers = make_prompt_cache(model)
    model(mx.array([request.prompt[:-1]]), cache=layers)
    return Newcomer(request, layers)


class Answers:
    """Of a batch, as its events tell them."""

    def __init__(self, model: Any, *, merged: bool = True, ahead: Sequence[bool] = (True,)) -> None:
        """`ahead`: of the steps, over and over."""
        self._ahead = itertools.cycle(ahead)
        self._model = Float32Logits(model)
        self.batch = Batch(self._model, VOCABULARY, merged=merged)
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[TokenLogprob]] = {}
        self.reasons: dict[int, str] = {}

    def add(self, *requests: Generate) -> None:
        self.batch.add([read(self._model, each) for each in requests])

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            events: list[EngineEvent] = []
            finished: list[Answered] = []
            self.batch.step(events, finished, ahead=next(self._ahead))
            self._hear([*events, *(answered.end for answered in finished if answered.end)])
            for each, tokens, layers, *_ in finished:
                assert tokens == each.prompt + self.tokens[each.id]
                assert {int(layer.offset) for layer in layers} == {len(tokens)}

    def _hear(self, events: Sequence[EngineEvent]) -> None:
        for event in events:
            if isinstance(event, Tokens):
                self.tokens.setdefault(event.id, []).extend(event.tokens)
                self.logprobs.setdefault(event.id, []).extend(event.logprobs)
            elif isinstance(event, Finished):
                self.reasons[event.id] = event.reason


def alone(model: Any, requests: Sequence[Generate]) -> Mapping[int, list[int]]:
    made: dict[int, list[int]] = {}
    for each in requests:
        answers = Answers(model)
        answers.add(each)
        answers.step(each.max_tokens)
        made |= answers.tokens
    return made


@pytest.mark.parametrize("ahead", [(True,), (False,), (True, True, False, False, True, False)], ids=str)
@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("make", [request, sampled, penalised])
def test_who_comes_and_goes_answers_token_for_token_as_alone(
    model: Model, make: Any, merged: bool, ahead: Sequence[bool]
) -> None:
    requests = [make(id) for id in LENGTHS]
    answers = Answers(model.raw, merged=merged, ahead=ahead)
    answers.add(requests[0])
    answers.step(5)
    answers.add(*requests[1:])
    answers.step(60)
    assert answers.reasons == {1: "length", 2: "length", 3: "length"}
    assert answers.tokens == alone(model.raw, requests)
    assert len(answers.batch) == 0


def test_one_that_is_cancelled_leaves_the_others_as_they_were(model: Model) -> None:
    requests = [request(id) for id in LENGTHS]
    answers = Answers(model.raw)
    answers.add(*requests[:2])
    answers.step(3)
    answers.add(requests[2])
    gone, tokens, *_ = answers.batch.remove(2)
    assert tokens == gone.prompt + answers.tokens[2]
    # It has not been in a pass yet.
    assert answers.batch.remove(3)[1] == requests[2].prompt[:-1]
    answers.step(60)
    assert answers.tokens[1] == alone(model.raw, requests[:1])[1]


def test_a_lone_sequence_decodes_on_its_own_caches_before_and_after_company(model: Model) -> None:
    decoder = Decoder(Float32Logits(model.raw), VOCABULARY)
    kinds = []

    def look() -> None:
        kinds.append({type(layer) for layer in decoder.layers} <= {KVCache, RotatingKVCache})

    decoder.add([read(model.raw, request(1))])
    decoder.step()
    look()
    decoder.add([read(model.raw, request(2))])
    decoder.step()
    look()
    decoder.remove([decoder.rows[1]])
    look()
    assert kinds == [True, False, True]


def test_a_newcomer_costs_those_who_decode_no_pass_of_its_own(model: Model) -> None:
    rows: list[int] = []

    def counted(tokens: mx.array, cache: Any) -> mx.array:
        rows.append(tokens.shape[0])
        return Float32Logits(model.raw)(tokens, cache=cache)

    decoder = Decoder(counted, VOCABULARY)
    decoder.add([read(model.raw, request(1))])
    decoder.step()
    decoder.add([read(model.raw, request(2))])
    decoder.step()
    assert rows == [1, 1, 2]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_pass_is_ordered_before_its_tokens_are_wanted_only_when_it_is_to_be(
    model: Model, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordered: list[int] = []
    order = mx.async_eval

    def counted(*arrays: Any) -> None:
        ordered.append(len(arrays))
        order(*arrays)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(mx, "async_eval", counted)
    answers = Answers(model.raw, ahead=(ahead,))
    answers.add(request(1), request(2))
    counts = []
    for _ in range(3):
        answers.step()
        counts.append((len(answers.tokens[1]), len(ordered)))
        assert answers.batch.under_way == ahead
    assert counts == ([(1, 2), (2, 3), (3, 4)] if ahead else [(1, 1), (2, 2), (3, 3)])


def test_a_step_with_logprobs_waits_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of arrays afterwards was computed with the pass: none of it is still to be done."""
    answers = Answers(model.raw)
    answers.add(sampled(1), sampled(2), request(3))
    answers.step()
    evaluated: list[int] = []
    evaluate = mx.eval

    def counted(*arrays: Any) -> None:
        evaluated.append(len(arrays))
        evaluate(*arrays)

    monkeypatch.setattr(mx, "eval", counted)
    monkeypatch.setattr(mx.array, "item", lambda self: pytest.fail("a wait of its own"))
    answers.step()
    assert len(evaluated) == 1
    assert [len(answers.logprobs[id][-1].top) for id in (1, 2)] == [1, 2]
    assert answers.logprobs[3] == []


def test_a_stop_token_ends_an_answer_and_is_in_its_caches(model: Model) -> None:
    free = alone(model.raw, [request(2)])[2]
    stop = free[4]
    decoding = Answers(model.raw)
    decoding.add(request(2, stop_tokens=[stop]))
    finished: list[Answered] = []
    while len(decoding.batch):
        decoding.batch.step([], finished)
    [(asked, tokens, _, end, _)] = finished
    assert end == Finished(2, "stop")
    assert tokens == asked.prompt + free[: free.index(stop) + 1]
