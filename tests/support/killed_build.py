"""A build that is cut off: `python -m tests.support.killed_build SOURCE OUTPUT POLICY CALL HOW [TEXT]`.

At the CALL-th progress report it does HOW: `kill` and `interrupt` send it SIGKILL and SIGINT, `fill` leaves the disk of
OUTPUT without room. With TEXT, a calibrated one.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

from quantize.build.build import build
from quantize.calibrate.calibration import open_source, read_calibration
from quantize.errors import QuantizeError
from quantize.mlx_lm_alone import import_mlx_lm_alone
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint


class Saboteur:
    def __init__(self, call: int, how: str, disk: Path) -> None:
        self._left = call
        self._how = how
        self._disk = disk

    def __call__(self, phase: str, done: int, total: int | None, text: str) -> None:
        self._left -= 1
        if self._left == 0 and self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._left == 0 and self._how == "interrupt":
            signal.raise_signal(signal.SIGINT)
        if self._left == 0 and self._how == "fill":
            self._fill()

    def _fill(self) -> None:
        with (self._disk / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass


def main() -> None:
    source, output, policy, call, how, *text = sys.argv[1:]
    if not text:
        import_mlx_lm_alone()
    checkpoint = open_checkpoint(source, HubOptions())
    calibration = read_calibration(Path(text[0]), 512) if text else None
    plan = make_plan(checkpoint, policy, calibration=calibration.identity if calibration else None)
    run = partial(calibration.run, open_source(source, HubOptions())) if calibration else None
    saboteur = Saboteur(int(call), how, Path(output).parent)
    try:
        # Small blocks: many moments to be cut off at.
        build(checkpoint, plan, Path(output), memory_limit=260_000_000, progress=saboteur, calibrate=run)
    except QuantizeError as error:
        sys.exit(error.message)
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
