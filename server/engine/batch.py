"""The sequences that decode together. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from server.engine import compat
from server.engine.compat import Layers
from server.engine.sampling import make_processors, make_sampler
from server.engine.scoring import token_logprob
from server.engine.side_by_side import SideBySide
from server.engine_client.protocol import EngineEvent, Finished, Generate, TokenLogprob, Tokens


class Batch:
    """Ids are those of `Generate`. Not `merged`, each sequence has a forward pass of its own."""

    def __init__(self, model: Any, *, merged: bool = True) -> None:
        self._model = model
        self._merged = merged
        self._batch: Any = compat.empty_batch(model) if merged else SideBySide()
        self._requests: dict[int, Generate] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, id: int) -> bool:
        return id in self._requests

    @property
    def nbytes(self) -> int:
        return sum(int(layer.nbytes) for layer in self._batch.prompt_cache)

    def requests(self) -> Iterator[tuple[Generate, int]]:
        """Each with the tokens in its cache."""
        for id, tokens in zip(self._batch.uids, self._batch.tokens, strict=True):
            yield self._requests[id], len(tokens)

    def add(self, newcomers: Sequence[tuple[Generate, Layers]]) -> None:
        """Decode these too. Their caches hold all of their prompts but the last token; their first step is one pass."""
        if not newcomers:
            return
        if self._merged:
            self._batch.extend(self._decoding(newcomers))
        else:
            self._batch.extend(SideBySide([self._decoding([newcomer]) for newcomer in newcomers]))
        self._requests |= {request.id: request for request, _ in newcomers}

    def _decoding(self, newcomers: Sequence[tuple[Generate, Layers]]) -> Any:
        requests = [request for request, _ in newcomers]
        return compat.decoding_batch(
            self._model,
            ids=[request.id for request in requests],
            last_tokens=[request.prompt[-1] for request in requests],
            caches=[layers for _, layers in newcomers],
            tokens=[request.prompt[:-1] for request in requests],
            samplers=[make_sampler(request.sampling) for request in requests],
            processors=[tuple(make_processors(request.sampling, len(request.prompt))) for request in requests],
            stop_tokens=[request.stop_tokens for request in requests],
            max_tokens=[request.max_tokens for request in requests],
            merged=self._merged,
        )

    def step(self) -> tuple[list[EngineEvent], list[tuple[Generate, list[int], Layers]]]:
        """One token for every sequence. Each that finished, with the tokens that its caches hold, and the caches."""
        events: list[EngineEvent] = []
        finished = []
        for response in self._batch.next():
            request = self._requests[response.uid]
            events += _events(request, response)
            if response.finish_reason is not None:
                finished.append((request, response.all_tokens, response.prompt_cache))
                del self._requests[request.id]
        return events, finished

    def remove(self, id: int) -> tuple[Generate, list[int], Layers]:
        """Take `id` out before it finished: the request, the tokens that its caches hold, and the caches."""
        index = self._batch.uids.index(id)
        removed = (self._requests.pop(id), self._batch.tokens[index], self._batch.extract_cache(index))
        self._batch.filter([i for i in range(len(self._batch)) if i != index])
        return removed


def _events(request: Generate, response: Any) -> list[EngineEvent]:
    events: list[EngineEvent] = []
    if response.finish_reason != "stop":
        logprobs: list[TokenLogprob] = []
        if request.top_logprobs is not None:
            logprobs = [token_logprob(response.logprobs, response.token, request.top_logprobs)]
        events.append(Tokens(request.id, [response.token], logprobs))
    if response.finish_reason is not None:
        events.append(Finished(request.id, response.finish_reason))
    return events
