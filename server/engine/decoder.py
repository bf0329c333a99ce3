"""Sequences that share a forward pass a step. Runs in the engine process.

All that a step has to say, logprobs too, is part of its graph, so a step waits once; and the host makes the graph of
the next pass while the device works on this one. The device may also be given the next pass before the tokens of this
one are read (`ahead`), so that it is never idle. That is not free: whatever else it is to do, such as a piece of
a prompt, waits for that pass, and where MLX takes only so much at a time the tokens of this one wait for it too.
A sequence alone decodes on its own caches; those of mlx-lm for batches, with masks and offsets as arrays, come with
a second one and go when one is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import mlx.core as mx

from server.engine.compat import Layers
from server.engine.drawing import Drawing
from server.engine.prefixes.aside import Aside
from server.engine.scoring.wanted import Scored
from server.engine.steering.masks import Masks
from server.engine.steering.steering import Steering
from server.engine_client.protocol import Generate, TokenLogprob


class Newcomer(NamedTuple):
    """`layers` hold all of the prompt but its last token."""

    request: Generate
    layers: Layers
    steering: Steering | None = None
    aside: Aside | None = None


@dataclass(eq=False, slots=True)
class DecodingSequence:
    """A sequence. `tokens` are those in its caches, and `unfed` the one after them, where it is known. `draws` counts
    what it has drawn, with what is under way; `answered`, what of it was told."""

    request: Generate
    steering: Steering | None
    tokens: list[int]
    unfed: list[int]
    draws: int = 0
    answered: int = 0
    aside: Aside | None = None


class Drawn(NamedTuple):
    """A token that a sequence has drawn; `logprob` where the request wants it."""

    row: DecodingSequence
    token: int
    logprob: TokenLogprob | None


@dataclass(slots=True)
class _Pass:
    """A forward pass of `rows`, and the tokens `drawn` of it, (rows,); to be computed with it: what is `scored`, and
    the `state` of what it was drawn by. `ordered`: the device has it."""

    rows: list[DecodingSequence]
    drawn: mx.array
    scored: Scored | None
    state: list[mx.array]
    ordered: bool = False

    def order(self) -> None:
        if not self.ordered:
            mx.async_eval(self.drawn, self._scores, self.state)  # type: ignore[no-untyped-call]
            self.ordered = True

    def wait(self) -> tuple[list[int], Mapping[int, TokenLogprob]]:
        """The tokens, and the logprobs that are wanted by the ids of their requests."""
        mx.eval(self.drawn, self._scores)
        tokens: Any = self.drawn.tolist()
        if self.scored is None:
            return tokens, {}
        return tokens, self.scored.read({row.request.id: token for row, token in zip(self.rows, tokens, strict=True)})

    @property
    def _scores(self) -> list[mx.array]:
        return self.scored.scores.arrays if self.scored is not None else []

    def keep(self, rows: Sequence[DecodingSequence]) -> bool:
        """Only these of its rows; whether there are any."""
        kept = [index for index, row in enumerate(self.rows) if row in rows]
        if len(kept) < len(self.rows):
            self.rows = [self.rows[index] for index in kept]
            self.drawn = self.drawn[mx.array(kept, mx.uint32)]
        return bool(kept)


class Decoder:
    """`vocab_size`: the tokens that may be drawn where something is ruled out."""

    def __init__(self, model: Any, vocab_size: int) -> None:
        self._model = model
        self._masks = Masks(vocab_size)
        self.rows: list[DecodingSequence] = []
        # Of the one sequence itself, or of all as a batch.
        self.layers: Layers = []
        # Of the first of the rows; those behind them are in no pass yet. None: no token is to come.
        self._next: _Pass | None = None
        # For the rows as they are; None when these have changed.
        self._drawing: Drawing | None = None

    @property
    def under_way(self) -> bool:
        """Whether the device has been given a pass whose tokens were not read."""
        return self._next is not None and self._next.ordered

    def add(self, newcomers: Sequence[Newcomer]) -> None:
        """They are in the next pass that is made."""
        self._merge([newcomer.layers for newcomer in newcomers])
        for request, _, steering, aside in newcomers:
            row = DecodingSequence(request, steering, request.prompt[:-1], request.prompt[-1:], aside=aside)
            self.rows.append(row)
        self._drawing = None

    def step(self, *, ahead: bool = True) -> list[Drawn]:
        """The tokens of the next pass, of the rows that are in it."""
        if not self.rows:
            return []
        this = self._next or self._made()
        self._next = None
        this.order()
        # A steering must know the tokens of this pass before the next one can be made: it would wait here.
        if ahead or not any(row.steering for row in self.rows):
            self._next = self._made(behind=this)
        if ahead and self._next is not None:
            self._next.order()
        tokens, logprobs = this.wait()
        return [self._told(row, token, logprobs) for row, token in zip(this.rows, tokens, strict=True)]

    def _told(self, row: DecodingSequence, token: int, logprobs: Mapping[int, TokenLogprob]) -> Drawn:
        row.answered += 1
        if self._next is not None:
            row.tokens.append(token)
        else:
            row.unfed = [token]
            if row.steering is not None:
                row.steering.advance(token)
        return Drawn(row, token, logprobs.get(row.request.id))

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
        self.rows = [self.rows[index] for index in keep]
        if self._next is not None and not self._next.keep(self.rows):
            self._next = None
        self._drawing = None

    def _merge(self, newcomers: Sequence[Layers]) -> None:
        if len(self.rows) + len(newcomers) == 1:
            self.layers = list(newcomers[0])
        elif len(self.rows) > 1:
            for layer, batch in zip(self.layers, _batch(newcomers), strict=True):
                layer.extend(batch)
        else:
            self.layers = _batch([self.layers, *newcomers] if self.rows else newcomers)

    def _made(self, behind: _Pass | None = None) -> _Pass:
        """The graph of one pass, and of all that follows of its logits; it reads what `behind` draws."""
        rows, told = self.rows, len(behind.rows) if behind is not None else 0
        tokens = self._inputs(behind)
        inputs = mx.expand_dims(tokens, 1)
        logits = mx.squeeze(self._model(inputs, cache=self.layers), 1)
        logits = self._masks.apply(logits, [row.steering for row in rows], tokens, len(rows) - told)
        if self._drawing is None:
            requests = [row.request for row in rows]
            self._drawing = Drawing(requests, [row.tokens for row in rows], logits.shape[-1])
        drawn, scored = self._drawing.draw(logits, inputs, [row.draws for row in rows])
        for row in rows:
            row.draws += 1
            row.tokens += row.unfed
            row.unfed = []
        return _Pass(list(rows), drawn, scored, self._drawing.state)

    def _inputs(self, behind: _Pass | None) -> mx.array:
        """What a pass reads, (rows,): drawn by the one before it, or known."""
        known = mx.array([token for row in self.rows for token in row.unfed], mx.uint32)
        if behind is None:
            return known
        return mx.concatenate([behind.drawn, known]) if known.size else behind.drawn


def _batch(caches: Sequence[Layers]) -> Layers:
    return [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
