"""Sequences that share a forward pass a step. Runs in the engine process.

The device works on a step while the host reads what the one before drew. All that a step has to say, logprobs too, is
part of its graph, so a step waits once. A sequence alone decodes on its own caches; those of mlx-lm for batches, with
masks and offsets as arrays, come with a second one and go when one is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from server.engine.compat import Layers
from server.engine.drawing import Drawing
from server.engine.scoring.wanted import Scored
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
        self._scored: Scored | None = None
        # For the rows as they are; None when these have changed.
        self._drawing: Drawing | None = None

    def add(self, newcomers: Sequence[Newcomer]) -> None:
        """Their first token comes with the next pass of all; with nobody decoding, that begins now."""
        alone = not self.rows
        self._merge([newcomer.layers for newcomer in newcomers])
        last = mx.array([newcomer.request.prompt[-1] for newcomer in newcomers], mx.uint32)
        self._inputs = last if alone else mx.concatenate([self._inputs, last])
        self.rows += [DecodingSequence(new.request, new.steering, new.request.prompt[:-1]) for new in newcomers]
        self._drawing = None
        if alone:
            self._launch()
            for row in self.rows:
                row.tokens.append(row.request.prompt[-1])

    def step(self) -> list[Drawn]:
        """Begin a pass, then wait for the one before; what that drew is read by the one under way."""
        if not self.rows:
            return []
        inputs, scored, before = self._inputs, self._scored, list(self.rows)
        has_drawn = [row.draws > 0 for row in before]
        self._launch()
        mx.eval(inputs, scored.scores.arrays if scored is not None else [])
        tokens = inputs.tolist()
        logprobs: Mapping[int, TokenLogprob] = {}
        if scored is not None:
            logprobs = scored.read({row.request.id: token for row, token in zip(before, tokens, strict=True)})
        drawn = []
        for row, token, has in zip(before, tokens, has_drawn, strict=True):
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
        self._drawing = None

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
        rows, inputs = self.rows, mx.expand_dims(self._inputs, 1)
        logits = mx.squeeze(self._model(inputs, cache=self.layers), 1)
        new = sum(row.draws == 0 for row in rows)
        logits = self._masks.apply(logits, [row.steering for row in rows], self._inputs, new)
        if self._drawing is None:
            requests = [row.request for row in rows]
            self._drawing = Drawing(requests, [row.tokens for row in rows], logits.shape[-1])
        self._inputs, self._scored = self._drawing.draw(logits, inputs, [row.draws for row in rows])
        scores = self._scored.scores.arrays if self._scored is not None else []
        mx.async_eval(self._inputs, scores, self._drawing.state)  # type: ignore[no-untyped-call]
        for row in rows:
            row.draws += 1


def _batch(caches: Sequence[Layers]) -> Layers:
    return [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
