"""The requests that decode, and what becomes of the tokens that they draw. Runs in the engine process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from server.engine import kv
from server.engine.compat import Layers
from server.engine.decoder import Decoder, DecodingSequence, Drawn, Newcomer
from server.engine.prefixes.aside import Aside
from server.engine_client.protocol import EngineEvent, Failed, Finished, Generate, Request, Tokens


class Answered(NamedTuple):
    """A request that nothing more is done for, the tokens that its caches hold, and the caches: see `Batch.settle`.
    `end`: what is to be told of it, unless it was told or it was cancelled."""

    request: Request
    tokens: list[int]
    layers: Layers
    end: Finished | None = None
    aside: Aside | None = None


class Batch:
    """Ids are those of `Generate`. `vocab_size`: the tokens that may be drawn. Not `merged`, as mlx-lm cannot decode
    several sequences of some architectures in one pass, each has passes of its own."""

    def __init__(self, model: Any, vocab_size: int, *, merged: bool = True) -> None:
        self._model = model
        self._vocab_size = vocab_size
        self._merged = merged
        self._decoders: list[Decoder] = []
        # The one that something is done with, or was done with last.
        self._at_work: Decoder | None = None

    def __len__(self) -> int:
        return sum(len(decoder.rows) for decoder in self._decoders)

    def __contains__(self, id: int) -> bool:
        return any(row.request.id == id for _, row in self._rows())

    @property
    def nbytes(self) -> int:
        return sum(int(layer.nbytes) for decoder in self._decoders for layer in decoder.layers)

    def requests(self) -> Iterator[tuple[Generate, int]]:
        """Each with the tokens in its cache."""
        for _, row in self._rows():
            yield row.request, len(row.tokens)

    def add(self, newcomers: Sequence[Newcomer]) -> None:
        """Decode these too. As far as that is known, `end_failed` ends those that cannot begin."""
        groups = [newcomers] if self._merged else [[newcomer] for newcomer in newcomers]
        for group in (group for group in groups if group):
            if not (self._merged and self._decoders):
                self._decoders.append(Decoder(self._model, self._vocab_size))
            self._at_work = self._decoders[-1]
            self._at_work.add(group)

    def step(self, events: list[EngineEvent], answered: list[Answered], *, ahead: bool = True) -> None:
        """One token for every sequence, added to `events`; and to `answered` those that finished, of whose end nobody
        is told yet, and those that an error of their own has ended. `ahead`: see `decoder.py`."""
        for decoder in self._decoders:
            self._at_work = decoder
            ended: list[tuple[DecodingSequence, Finished]] = []
            for drawn in decoder.step(ahead=ahead):
                reason = _reason(drawn)
                if reason != "stop":
                    events.append(_tokens(drawn))
                if reason is not None:
                    # Nothing can follow what is complete: as if a stop token came next.
                    end = Finished(drawn.row.request.id, "length" if reason == "length" else "stop")
                    ended.append((drawn.row, end))
            answered += [_answered(decoder, row, end) for row, end in ended]
            decoder.remove([row for row, _ in ended])
        self.end_failed(events, answered)

    def end_failed(self, events: list[EngineEvent], answered: list[Answered]) -> None:
        """Ends the sequences whose steerings have failed. Behind a step, which may have left decoders empty."""
        for decoder in self._decoders:
            failed = [(row, why) for row in decoder.rows if row.steering is not None and (why := row.steering.failed)]
            events += [Failed(row.request.id, why.kind, why.message) for row, why in failed]
            answered += [_answered(decoder, row, None) for row, _ in failed]
            decoder.remove([row for row, _ in failed])
        self._drop_empty()

    @property
    def under_way(self) -> bool:
        """Whether the device has been given passes whose tokens were not read."""
        return any(decoder.under_way for decoder in self._decoders)

    def remove(self, id: int) -> Answered:
        """Take `id` out before it finished."""
        decoder, row = next(found for found in self._rows() if found[1].request.id == id)
        self._at_work = decoder
        removed = _answered(decoder, row, None)
        decoder.remove([row])
        self._drop_empty()
        return removed

    def settle(self, answered: Sequence[Answered]) -> None:
        """Part the caches of `answered` from those that they shared a batch with, layer by layer: until then what that
        takes is not computed, and the buffers of all are held."""
        shared = [decoder.layers for decoder in self._decoders] if self._merged else []
        apart = [answer.layers for answer in answered] + shared
        if len(apart) < 2:
            return
        try:
            for layers in zip(*apart, strict=True):
                kv.evaluate(list(layers))
        except Exception:
            # MLX takes what it could not compute for computed, when it is asked again.
            self._decoders = [] if shared else self._decoders
            raise

    @property
    def asides(self) -> int:
        """Bytes."""
        return sum(row.aside.nbytes for _, row in self._rows() if row.aside is not None)

    def drop_asides(self) -> None:
        for _, row in self._rows():
            row.aside = None

    def drop_failed(self) -> None:
        """Forget the sequences that share all that has been left half done when `add`, `step` or `remove` failed."""
        self._decoders = [decoder for decoder in self._decoders if decoder is not self._at_work]

    def _drop_empty(self) -> None:
        self._decoders = [decoder for decoder in self._decoders if decoder.rows]

    def _rows(self) -> Iterator[tuple[Decoder, DecodingSequence]]:
        return ((decoder, row) for decoder in self._decoders for row in decoder.rows)


def unanswered(newcomer: Newcomer) -> Answered:
    """One that is read, and nothing was drawn for."""
    request = newcomer.request
    return Answered(request, request.prompt[:-1], newcomer.layers, None, newcomer.aside)


def _answered(decoder: Decoder, row: DecodingSequence, end: Finished | None) -> Answered:
    return Answered(row.request, row.tokens, decoder.extract(row), end, row.aside)


def _reason(drawn: Drawn) -> str | None:
    """Why the answer ends with the token, if it does."""
    request, steering = drawn.row.request, drawn.row.steering
    if drawn.token in request.stop_tokens:
        return "stop"
    if steering is not None and steering.complete:
        return "complete"
    return "length" if drawn.row.answered >= request.max_tokens else None


def _tokens(drawn: Drawn) -> Tokens:
    return Tokens(drawn.row.request.id, [drawn.token], [] if drawn.logprob is None else [drawn.logprob])
