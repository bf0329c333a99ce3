"""The sequences that decode together. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from server.engine import compat
from server.engine.compat import Layers
from server.engine.sampling import make_processors, make_sampler
from server.engine.scoring.prompt_logprobs import token_logprob
from server.engine.side_by_side import SideBySide
from server.engine.steering.masks import MaskedModel
from server.engine.steering.steering import Steering
from server.engine_client.protocol import EngineEvent, Failed, Finished, Generate, TokenLogprob, Tokens


class Newcomer(NamedTuple):
    """`layers` hold all of the prompt but its last token."""

    request: Generate
    layers: Layers
    steering: Steering | None = None


class Batch:
    """Ids are those of `Generate`. `vocab_size`: the tokens that may be drawn. Not `merged`, each sequence has a
    forward pass of its own."""

    def __init__(self, model: Any, vocab_size: int, *, merged: bool = True) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._merged = merged
        self._batch: Any = compat.empty_batch(MaskedModel(model, vocab_size)) if merged else SideBySide()
        self._requests: dict[int, Generate] = {}
        self._steerings: dict[int, Steering] = {}

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

    def add(self, newcomers: Sequence[Newcomer]) -> list[EngineEvent]:
        """Decode these too; their first step is one pass. The events of those that cannot begin."""
        if not newcomers:
            return []
        if self._merged:
            self._batch.extend(self._decoding(newcomers))
        else:
            self._batch.extend(SideBySide([self._decoding([newcomer]) for newcomer in newcomers]))
        self._requests |= {new.request.id: new.request for new in newcomers}
        self._steerings |= {new.request.id: new.steering for new in newcomers if new.steering is not None}
        # Before the first token that nothing allowed is seen.
        return [self._fail(new.request.id, new.steering) for new in newcomers if new.steering and new.steering.failed]

    def _decoding(self, newcomers: Sequence[Newcomer]) -> Any:
        requests = [newcomer.request for newcomer in newcomers]
        model = MaskedModel(self._model, self._vocab_size)
        model.steerings = [newcomer.steering for newcomer in newcomers]
        return compat.decoding_batch(
            model,
            ids=[request.id for request in requests],
            last_tokens=[request.prompt[-1] for request in requests],
            caches=[newcomer.layers for newcomer in newcomers],
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
        for part in [self._batch] if self._merged else self._batch.sequences:
            part.model.steerings = [self._steerings.get(id) for id in part.uids]
            part.model.drawn = compat.drawn_tokens(part)
        for response in self._batch.next():
            request = self._requests[response.uid]
            steering = self._steerings.get(request.id)
            complete = steering is not None and steering.complete
            events += _events(request, response, complete=complete)
            if response.finish_reason is not None:
                finished.append((request, response.all_tokens, response.prompt_cache))
                self._forget(request.id)
            elif complete:
                finished.append(self.remove(request.id))
            elif steering is not None and steering.failed is not None:
                events.append(self._fail(request.id, steering))
        return events, finished

    def remove(self, id: int) -> tuple[Generate, list[int], Layers]:
        """Take `id` out before it finished: the request, the tokens that its caches hold, and the caches."""
        index = self._batch.uids.index(id)
        removed = (self._requests[id], self._batch.tokens[index], self._batch.extract_cache(index))
        self._batch.filter([i for i in range(len(self._batch)) if i != index])
        self._forget(id)
        return removed

    def _fail(self, id: int, steering: Steering) -> EngineEvent:
        self.remove(id)
        return Failed(id, "invalid", steering.failed or "")

    def _forget(self, id: int) -> None:
        del self._requests[id]
        self._steerings.pop(id, None)


def _events(request: Generate, response: Any, *, complete: bool) -> list[EngineEvent]:
    """`complete`: nothing can follow the token, so that the answer ends with it, as if a stop token came next."""
    events: list[EngineEvent] = []
    if response.finish_reason != "stop":
        logprobs: list[TokenLogprob] = []
        if request.top_logprobs is not None:
            logprobs = [token_logprob(response.logprobs, response.token, request.top_logprobs)]
        events.append(Tokens(request.id, [response.token], logprobs))
    if complete or response.finish_reason is not None:
        events.append(Finished(request.id, "stop" if complete else response.finish_reason))
    return events
