"""Several requests decoding together, over mlx-lm's BatchGenerator. Runs in the engine process.

One `step` is one decode step for everything that runs plus one slice of prefill for what has just started, and
returns the events that came of it.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, GenerationBatch, StopSequences

from server.engine.messages import Event, Finished, Generate, Prefilled, TokenLogprob, Tokens
from server.engine.sampling import make_processors, make_sampler
from server.engine.scoring import Scoring, token_logprob


class Float32Logits:
    """The model with its logits in float32: in bf16 they round to 3 digits, too coarse for logprobs and sampling.

    Lazy like everything in MLX: during prefill nobody asks for the logits and nothing is computed.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        logits: mx.array = self._model(tokens, cache=cache)
        return logits.astype(mx.float32)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class Batch:
    """The sequences that hold a slot. Ids are those of `Generate`; BatchGenerator's uids stay inside."""

    def __init__(self, model: nn.Module, *, slots: int, prefill_step_tokens: int) -> None:
        self._model = Float32Logits(model)
        self._generator = BatchGenerator(
            self._model,
            completion_batch_size=slots,
            prefill_batch_size=slots,
            prefill_step_size=prefill_step_tokens,
        )
        self._requests: dict[int, Generate] = {}
        self._uids: dict[int, int] = {}
        self._scoring: dict[int, Scoring] = {}

    @property
    def kv_bytes(self) -> int:
        return int(self._generator.prompt_cache_nbytes)

    def insert(self, request: Generate) -> Event:
        """Start `request`. Its prompt is read slice by slice in the steps that follow."""
        if request.prompt_logprobs:
            self._scoring[request.id] = Scoring(self._model, request)
        else:
            self._generate(request, request.prompt)
        return Prefilled(request.id, 0, len(request.prompt))

    def remove(self, id: int) -> None:
        """Forget `id`, in whatever phase it is."""
        self._scoring.pop(id, None)
        for uid in [uid for uid, request in self._requests.items() if request.id == id]:
            self._generator.remove([uid])
            self._forget(uid)

    def close(self) -> None:
        self._generator.close()

    def step(self) -> list[Event]:
        events = self._score()
        if not self._uids:
            return events
        prompts, generated = self._generator.next()
        for progress in prompts:
            if isinstance(progress.progress, tuple) and not progress.end_of_prompt:
                done, total = progress.progress
                request = self._requests[progress.uid]
                # mlx-lm counts only what it was given; a scored prompt arrives with its cache filled.
                behind = len(request.prompt) - total
                events.append(Prefilled(request.id, behind + done, behind + total))
        for response in generated:
            events.extend(self._token_events(response))
        return events

    def _generate(self, request: Generate, prompt: list[int], cache: list[Any] | None = None) -> None:
        [uid] = self._generator.insert(
            [prompt],
            max_tokens=[request.max_tokens],
            caches=None if cache is None else [cache],
            all_tokens=[request.prompt[: len(request.prompt) - len(prompt)]],
            samplers=[make_sampler(request.sampling)],
            logits_processors=[make_processors(request.sampling, len(request.prompt))],
            stop_sequences=[StopSequences([(token,) for token in request.stop_tokens])],
        )
        self._requests[uid] = request
        self._uids[request.id] = uid

    def _token_events(self, response: GenerationBatch.Response) -> list[Event]:
        request = self._requests[response.uid]
        events: list[Event] = []
        if response.finish_reason != "stop":
            logprobs: list[TokenLogprob] = []
            if request.top_logprobs is not None:
                logprobs = [token_logprob(response.logprobs, response.token, request.top_logprobs)]
            events.append(Tokens(request.id, [response.token], logprobs))
        if response.finish_reason is not None:
            events.append(Finished(request.id, response.finish_reason))
            self._forget(response.uid)
        return events

    def _score(self) -> list[Event]:
        """One slice of scoring, for the oldest request that wants its prompt's logprobs."""
        if not self._scoring:
            return []
        id, scoring = next(iter(self._scoring.items()))
        events: list[Event] = scoring.step()
        if scoring.finished:
            del self._scoring[id]
            self._generate(scoring.request, scoring.request.prompt[-1:], scoring.cache)
        return events

    def _forget(self, uid: int) -> None:
        request = self._requests.pop(uid)
        del self._uids[request.id]
