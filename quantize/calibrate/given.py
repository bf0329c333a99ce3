"""What the matrices of a stage are given: noted while a layer runs, and read back as the solver wants it.

A token whose stream is far larger than the others' (the first of a text, in many models) is nearly all that the sums of
a matrix that writes to the stream see. Whatever reads the stream normalizes it, so each error counts relative to its
token's rms; but every other token attends to such a one, so it counts for many. Between these, the rows of such a
matrix are divided by the root of the rms; and by what a norm behind the matrix divides them by. Those of an expert are
multiplied by what the layer multiplies its output by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from quantize.calibrate.row_worths import PartCall, row_worths
from quantize.calibrate.stages import Stage, child_of
from quantize.calibrate.through_norms import move_before, token_rms
from quantize.forward.hooks import Hook
from quantize.forward.routing import by_expert

# Of a token's rms, by which its rows are divided. Measured: docs/calibration.md.
_POWER = 0.5


@dataclass(frozen=True, slots=True)
class Given:
    """Of one chunk and stage: Xq, Xf and R, of equal weight for the solver, and the expert of each row, by which rows
    are sorted. gains: (out,), what an error of each output is worth in the stream, None where all are worth the same.
    """

    inputs: mx.array
    full: mx.array
    stream: mx.array | None
    experts: npt.NDArray[np.uint32] | None
    gains: mx.array | None = None

    def of(self, expert: int | None) -> tuple[mx.array, mx.array, mx.array | None]:
        if expert is None or self.experts is None:
            return self.inputs, self.full, self.stream
        own = rows_for(self.experts, range(expert, expert + 1))
        return self.inputs[own.start : own.stop], self.full[own.start : own.stop], None


def rows_for(of_rows: npt.NDArray[np.uint32], experts: range) -> range:
    """Where the rows of some experts stand among rows that are sorted by expert; `of_rows`: the expert of each."""
    start, stop = np.searchsorted(of_rows, [experts.start, experts.stop])
    return range(int(start), int(stop))


def noting(number: int, stage: Stage, notes: dict[str, mx.array], *, behind: bool = True) -> list[tuple[str, Hook]]:
    """Hooks, by path, that put into `notes` what the solver needs of a run: the input of stage `number`, and of the
    stream around it. `behind`: what comes after the stage's matrix, too."""

    def inputs(call: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if stage.experts:
            rows, experts = by_expert(x, args[0])
            # So that those of a few experts can be read without the rest.
            order = mx.argsort(experts)
            notes[rows_of(number)], notes[experts_of(number)] = rows[order], experts[order]
        else:
            notes[rows_of(number)] = x.reshape(-1, x.shape[-1])
        return call(x, *args, **kwargs)

    def noted(name: str, of: Callable[[mx.array], mx.array]) -> Hook:
        def note(call: Any, x: mx.array) -> Any:
            notes[name] = of(x)
            return call(x)

        return note

    hooks: list[tuple[str, Hook]] = [(stage.paths[0], inputs)]
    if stage.writer is None:
        return hooks
    if not stage.experts:
        hooks.append((stage.writer.before, noted(f"{number}-before", _rows)))
    if behind:
        of_norm = _rms if stage.experts else _rows
        hooks += [
            (path, noted(_before_norm(number, place), of_norm)) for place, (path, _) in enumerate(stage.writer.norms)
        ]
        if stage.writer.after is not None:
            hooks.append((stage.writer.after, noted(f"{number}-after", _rms)))
    return hooks


def note_returned(stages: Sequence[Stage], returned: mx.array, notes: dict[str, mx.array]) -> None:
    """What `noting` cannot see, for the stages that write to it: the stream that the layer returns."""
    for number, stage in enumerate(stages):
        if stage.writer is not None and stage.writer.after is None:
            notes[f"{number}-after"] = _rms(returned)


def note_worths(
    stages: Sequence[Stage], modules: Mapping[str, Any], calls: Mapping[str, PartCall], notes: dict[str, mx.array]
) -> None:
    """What each row of experts that write to the stream counts for, once all else is noted. `calls`: of the parts of
    the layer that experts are in, by path."""
    every = [path for stage in stages if stage.experts for path in stage.paths]
    for number, stage in enumerate(stages):
        if stage.experts and stage.writer is not None:
            part = child_of(stage.paths[0])
            experts = {path: modules[path] for path in every if child_of(path) == part}
            counts = notes[f"{number}-after"] ** -_POWER
            for place in range(len(stage.writer.norms)):
                counts = counts / notes.pop(_before_norm(number, place))
            notes[_worth_of(number)] = row_worths(
                modules[part], calls[part], experts, stage.paths[0], len(notes[rows_of(number)]), counts
            )


def rows_of(number: int) -> str:
    """The name, in notes, of what stage `number` was given."""
    return f"{number}-rows"


def experts_of(number: int) -> str:
    """The name, in notes, of the expert of each of these rows."""
    return f"{number}-experts"


def _worth_of(number: int) -> str:
    return f"{number}-worth"


def _before_norm(number: int, place: int) -> str:
    return f"{number}-norm-{place}"


def given(number: int, stage: Stage, full: Mapping[str, mx.array], quantized: Mapping[str, mx.array]) -> Given:
    """From the notes of both streams."""
    inputs, wanted = quantized[rows_of(number)].astype(mx.float32), full[rows_of(number)].astype(mx.float32)
    if stage.experts:
        return given_to_experts(number, stage, full, inputs, wanted, range(len(inputs)))
    if stage.writer is None:
        return Given(inputs, wanted, None, None)
    stream = full[f"{number}-before"].astype(mx.float32) - quantized[f"{number}-before"].astype(mx.float32)
    counts = full[f"{number}-after"] ** -_POWER
    for place, (_, gain) in reversed(list(enumerate(stage.writer.norms))):
        normed = full[_before_norm(number, place)]
        stream = move_before(normed, gain, stream)
        counts = counts / token_rms(normed)
    return Given(counts * inputs, counts * wanted, counts * stream, None, stage.writer.gains)


def given_to_experts(
    number: int, stage: Stage, full: Mapping[str, mx.array], inputs: mx.array, wanted: mx.array, rows: range
) -> Given:
    """Of some experts; inputs, wanted: their rows of both streams, (len(rows), in) float32."""
    experts = np.array(full[experts_of(number)][rows.start : rows.stop])
    if stage.writer is None:
        return Given(inputs, wanted, None, experts)
    worth = full[_worth_of(number)][rows.start : rows.stop]
    return Given(worth * inputs, worth * wanted, None, experts, stage.writer.gains)


def _rows(stream: mx.array) -> mx.array:
    """(tokens, columns)."""
    return stream.reshape(-1, stream.shape[-1])


def _rms(stream: mx.array) -> mx.array:
    """(tokens, 1)."""
    return token_rms(stream).reshape(-1, 1)
