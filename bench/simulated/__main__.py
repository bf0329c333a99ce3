"""A Mac on paper: `python -m bench.simulated`, in a minute.

The engine's own loop, scheduler, token budget, admission, prefix cache and disk tier run against a scripted model that
takes the time of a chip's forward passes, on a virtual clock. So what it prints is what the engine decides, the same on
every machine: time to first token, gaps, sweeps over the weights, bytes written and copied. It writes
bench/results/simulated-*.json; with `--before`, the figures that later runs are shown beside.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from bench.result import RESULTS, Measured, Result, figures, lines, write
from bench.setup import setup
from bench.simulated.chips import CHIPS, Chip, measured
from bench.simulated.scenarios import ROWS, SCENARIOS, Values

_BEFORE = RESULTS / "simulated" / "before.json"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.simulated")
    parser.add_argument("--device", type=Path, help="simulate this one: what `configi doctor --json` wrote on a Mac")
    parser.add_argument("--before", action="store_true", help="keep the figures as those of before")
    args = parser.parse_args()
    try:
        chips = (measured(args.device),) if args.device else CHIPS
    except (OSError, msgspec.MsgspecError) as error:
        parser.error(f"{args.device} is not what `configi doctor --json` writes when it measures: {error}")
    values = {chip.name: _values(chip) for chip in chips}
    before = msgspec.json.decode(_BEFORE.read_bytes(), type=dict[str, Values]) if _BEFORE.exists() else {}
    if args.before:
        before = values
        _BEFORE.parent.mkdir(parents=True, exist_ok=True)
        _BEFORE.write_bytes(msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n")
    for chip in chips:
        result = _result(chip, before.get(chip.name), values[chip.name])
        if args.device is None:
            write(result, RESULTS)
        print("\n".join(lines(result)), flush=True)
    return 0


def _values(chip: Chip) -> Values:
    made: Values = {}
    for scenario in SCENARIOS:
        print(f"{chip.name}: {scenario.__name__} ...", file=sys.stderr, flush=True)
        made |= scenario(chip)
    return made


def _result(chip: Chip, before: Values | None, now: Values) -> Result:
    reference = None if before is None else Measured(before)
    name = f"simulated-{chip.name.lower().replace(' ', '-')}"
    title = f"{chip.name}, simulated: {1000 * chip.sweep_s:g} ms a sweep, {1000 * chip.token_s:.3g} ms a token"
    return Result(name, title, "before", setup(), figures(ROWS, reference, Measured(now)))


if __name__ == "__main__":
    sys.exit(main())
