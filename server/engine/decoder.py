"""Sequences that share a forward pass a step. Runs in the engine process.

The device works on a step while the host reads what the one before drew. All that a step has to say, logprobs too, is
part of its graph, so a step waits once. A sequence alone decodes on its own caches; those of mlx-lm for batches, with
masks and offsets as arrays, come with a second one and go when one is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from server.engine.compat import Layers
from server.engine.penalties import Penalised, Penalties, change_logits
from server.engine.sampling import Sampler
from server.engine.scoring.scores import Scores
from server.engine.steering.masks import Masks
from server.engine.steering.steering import Steering
from server.engine_client.protocol import Generate, TokenLogprob


class Newcomer(NamedTuple):
    """`layers` hold all of the prompt but its last token."""

    request: Generate
    layers: Layers
    steering: Steering | None = None


@dataclass(eq=False, slots=True)
class DecodingSequence:
    """A sequence. `tokens` are those in its caches; `draws` counts what it has drawn, with what is under way."""

    request: Generate
    steering: Steering | None
    tokens: list[int]
    draws: int = 0


class Drawn(NamedTuple):
    """A token of a sequence that is in its caches; `logprob` where the request wants it."""

    row: DecodingSequence
    token: int
    logprob: TokenLogprob | None


class Decoder:
    """`vocab_size`: the tokens that may be drawn where something is ruled out."""

    def __init__(self, model: Any, vocab_size: int) -> None:
        self._model = model
        self._masks = Masks(vocab_size)
        self.rows: list[DecodingSequence] = []
        # Of the one sequence itself, or of all as a batch.
        self.layers: Layers = []
        # What the next pass reads, (sequences,): drawn by the pass under way, or the last token of a prompt.
        self._inputs: Any = None
        self._scores: Scores | None = None
        # For the rows as they are; None when these have changed.
        self._sampler: Sampler | None = None
        self._penalties: Penalties | None = None

    def add(self, newcomers: Sequence[Newcomer]) -> None:
        """Their first token comes with the next pass of all; with nobody decoding, that begins now."""
        alone = not self.rows
        self._merge([newcomer.layers for newcomer in newcomers])
        last = mx.array([newcomer.request.prompt[-1] for newcomer in newcomers], mx.uint32)
        self._inputs = last if alone else mx.concatenate([self._inputs, last])
        self.rows += [DecodingSequence(new.request, new.steering, new.request.prompt[:-1]) for new in newcomers]
        self._sampler = self._penalties = None
        if alone:
            self._launch()
            for row in self.rows:
                row.tokens.append(row.request.prompt[-1])

    def step(self) -> list[Drawn]:
        """Begin a pass, then wait for the one before; what that drew is read by the one under way."""
        if not self.rows:
            return []
        inputs, scores, before = self._inputs, self._scores, list(self.rows)
        has_drawn = [row.draws > 0 for row in before]
        self._launch()
        mx.eval(inputs, scores.arrays if scores is not None else [])
        logprobs = scores.read() if scores is not None else {}
        drawn = []
        for row, token, has in zip(before, inputs.tolist(), has_drawn, strict=True):
            row.tokens.append(token)
            if has:
                drawn.append(Drawn(row, token, logprobs.get(row.request.id)))
        return drawn

    def wait(self) -> None:
        """For the pass under way."""
        mx.eval(self._inputs)

    def extract(self, row: DecodingSequence) -> Layers:
        """Its caches, from now on its own."""
        if len(self.rows) == 1:
            return list(self.layers)
        index = self.rows.index(row)
        return [layer.extract(index) for layer in self.layers]

    def remove(self, gone: Sequence[DecodingSequence]) -> None:
        keep = [index for index, row in enumerate(self.rows) if row not in gone]
        if len(keep) == len(self.rows):
            return
        if len(keep) > 1:
            for layer in self.layers:
                layer.filter(keep)
        elif keep and len(self.rows) > 1:
            self.layers = [layer.extract(keep[0]) for layer in self.layers]
        elif not keep:
            self.layers = []
        self._inputs = self._inputs[mx.array(keep)] if keep else None
        self.rows = [self.rows[index] for index in keep]
        self._sampler = self._penalties = None

    def _merge(self, newcomers: Sequence[Layers]) -> None:
        if len(self.rows) + len(newcomers) == 1:
            self.layers = list(newcomers[0])
        elif len(self.rows) > 1:
            for layer, batch in zip(self.layers, _batch(newcomers), strict=True):
                layer.extend(batch)
        else:
            self.layers = _batch([self.layers, *newcomers] if self.rows else newcomers)

    def _launch(self) -> None:
        """One pass, and all that follows of its logits."""
        inputs, rows = self._inputs, self.rows
        logits = self._model(inputs[:, None], cache=self.layers)[:, -1, :]
        new = sum(row.draws == 0 for row in rows)
        logits = self._masks.apply(logits, [row.steering for row in rows], inputs, new)
        logits, penalised = self._penalise(logits)
        logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        if self._sampler is None:
            self._sampler = Sampler([row.request.sampling for row in rows], logits.shape[-1])
        drawn = self._sampler.draw(logprobs, [row.draws for row in rows])
        wanted = {
            index: (row.request.id, row.request.top_logprobs)
            for index, row in enumerate(rows)
            if row.request.top_logprobs is not None
        }
        scores = Scores.of(logprobs, drawn, wanted) if wanted else None
        mx.async_eval(drawn, scores.arrays if scores is not None else [], penalised)  # type: ignore[no-untyped-call]
        for row in rows:
            row.draws += 1
        self._inputs, self._scores = drawn, scores

    def _penalise(self, logits: mx.array) -> tuple[mx.array, list[mx.array]]:
        """With penalties and bias; and what these know, which must not pile up as a graph."""
        if not change_logits([row.request.sampling for row in self.rows]):
            return logits, []
        if self._penalties is None:
            rows = [Penalised(row.request.sampling, row.tokens, len(row.request.prompt)) for row in self.rows]
            self._penalties = Penalties(rows, logits.shape[-1])
        logits = self._penalties.apply(logits, self._inputs, [row.draws > 0 for row in self.rows])
        return logits, self._penalties.state


def _batch(caches: Sequence[Layers]) -> Layers:
    return [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
