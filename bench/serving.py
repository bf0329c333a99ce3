"""configi against mlx_lm.server: `python -m bench.serving [SCENARIO ...]`, all of them when none is named.

Each scenario starts both servers in turn, never at once, on the same model folder, greedy, through HTTP; prints both
sides, the ratio and what it must be; and writes bench/results/SCENARIO.json. Exit code 1 when a scenario could not be
measured; a missed target is a result, not a failure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.models import MODELS, cache_folder
from bench.result import RESULTS, Curve, Measured, Result, figures, lines, median_of, same_answers, write
from bench.scenario import Scenario, Side
from bench.scenarios import floor, long_prompt, prefix, streams, tool_loop
from bench.servers import KINDS, Kind, ServerFailed
from bench.setup import setup
from bench.sse import NoAnswer

SCENARIOS = (
    streams.ONE,
    streams.FOUR,
    prefix.PREFIX,
    long_prompt.GAP,
    long_prompt.BEHIND,
    long_prompt.LEAVING,
    tool_loop.TOOL_LOOP,
    floor.THROUGHPUT,
    floor.TTFT,
)
FLOOR = "mlx-lm, no server"


def measured(scenario: Scenario, repeat: int) -> Result:
    """All sides of `scenario`, `repeat` times. The floor, if it has one, is what configi is measured against."""
    ways: dict[str, tuple[Kind, Callable[[Side], Measured]]] = {kind: (kind, scenario.measure) for kind in KINDS}
    if scenario.floor is not None:
        ways = {FLOOR: (KINDS[0], scenario.floor)} | ways
    repetitions: dict[str, list[Measured]] = {name: [] for name in ways}
    for number in range(repeat):
        # In turn within a repetition: a machine that grows slower or faster meets all sides.
        for name, (kind, measure) in ways.items():
            print(f"{scenario.name} {number + 1}/{repeat}: {name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="configi-bench-") as folder:
                side = Side(kind, MODELS[scenario.model](cache_folder()), Path(folder), number)
                repetitions[name].append(measure(side))
    sides = {name: median_of(measured) for name, measured in repetitions.items()}
    reference = next(iter(sides))
    curves = (
        Curve(plot.name, plot.title, plot.x, plot.y, {side: m.curves[plot.name] for side, m in sides.items()})
        for plot in scenario.plots
    )
    return Result(
        scenario=scenario.name,
        title=scenario.title,
        reference=reference,
        setup=setup(),
        figures=figures(scenario.rows, sides[reference], sides["configi"]),
        curves=tuple(curves),
        answers=len(sides["configi"].answers),
        same=same_answers(sides["mlx_lm.server"], sides["configi"]),
    )


def main() -> int:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"one of {', '.join(names)}")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON files")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(names):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    failed = False
    for scenario in SCENARIOS:
        if args.scenarios and scenario.name not in args.scenarios:
            continue
        try:
            result = measured(scenario, args.repeat)
        except (NoAnswer, ServerFailed) as error:
            print(f"{scenario.name}: {error}", file=sys.stderr)
            failed = True
            continue
        write(result, args.output)
        print("\n".join(lines(result)), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
