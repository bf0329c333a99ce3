"""What the matrices of a stage are given: noted while a layer runs, and read back as the solver wants it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from quantize.calibrate.stages import Stage, token_rms
from quantize.forward.hooks import Hook
from quantize.forward.taps import by_expert


@dataclass(frozen=True, slots=True)
class Given:
    """Of one chunk and stage: Xq, Xf, R, and the expert of each row."""

    inputs: mx.array
    full: mx.array
    stream: mx.array | None
    experts: npt.NDArray[np.uint32] | None

    def of(self, expert: int | None) -> tuple[mx.array, mx.array, mx.array | None]:
        if expert is None or self.experts is None:
            return self.inputs, self.full, self.stream
        chosen = mx.array(np.nonzero(self.experts == expert)[0].astype(np.int32))
        return self.inputs[chosen], self.full[chosen], None


def noting(number: int, stage: Stage, notes: dict[str, mx.array], *, norms: bool = True) -> list[tuple[str, Hook]]:
    """Hooks, by path, that put into `notes` what the solver needs of a run: the input of stage `number`, and of the
    stream around it. `norms`: those between the stage and the stream, too."""

    def inputs(call: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if stage.experts:
            notes[rows_of(number)], notes[f"{number}-experts"] = by_expert(x, args[0])
        else:
            notes[rows_of(number)] = x.reshape(-1, x.shape[-1])
        return call(x, *args, **kwargs)

    def before(call: Any, x: mx.array) -> Any:
        notes[f"{number}-before"] = x
        return call(x)

    def rms(place: int) -> Hook:
        def note(call: Any, x: mx.array) -> Any:
            notes[f"{number}-rms-{place}"] = token_rms(x)
            return call(x)

        return note

    hooks: list[tuple[str, Hook]] = [(stage.paths[0], inputs)]
    if stage.writer is not None:
        hooks.append((stage.writer.before, before))
        if norms:
            hooks += [(path, rms(place)) for place, (path, _) in enumerate(stage.writer.norms)]
    return hooks


def rows_of(number: int) -> str:
    """The name, in notes, of what stage `number` was given."""
    return f"{number}-rows"


def given(number: int, stage: Stage, full: Mapping[str, mx.array], quantized: Mapping[str, mx.array]) -> Given:
    """From the notes of both streams."""
    stream = None
    if f"{number}-before" in full:
        before, after = full[f"{number}-before"], quantized[f"{number}-before"]
        stream = (before.astype(mx.float32) - after.astype(mx.float32)).reshape(-1, before.shape[-1])
        for place, (_, gain) in enumerate(stage.writer.norms if stage.writer else ()):
            stream = stream * full[f"{number}-rms-{place}"].reshape(-1, 1) / gain
    experts = full.get(f"{number}-experts")
    return Given(
        quantized[rows_of(number)].astype(mx.float32),
        full[rows_of(number)].astype(mx.float32),
        stream,
        None if experts is None else np.array(experts),
    )
