"""configi against the other servers: `python -m bench.serving [SCENARIO ...]`, all of them when none is named.

Each scenario starts every server in turn, never two at once, on the same model folder, greedy, through HTTP; prints all
sides, the ratio to the best of the others and what it must be; and writes bench/results/SCENARIO.json. `bench.peers`
installs those that are not part of configi's environment; one that is not there is left out, and the result says so.
On a machine that does something else, before or after, a result is printed but not recorded. Exit code 1 when a
scenario could not be measured or recorded; a missed target is a result, not a failure.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.models import MODELS, cache_folder
from bench.peers import PEERS
from bench.quiet import disturbance
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
    long_prompt.EQUAL_GAP,
    long_prompt.BEHIND,
    long_prompt.LEAVING,
    long_prompt.RESTORED,
    tool_loop.TOOL_LOOP,
    streams.SLIDING_ONE,
    streams.SLIDING_FOUR,
    prefix.SLIDING_PREFIX,
    long_prompt.SLIDING_GAP,
    long_prompt.SLIDING_EQUAL_GAP,
    long_prompt.SLIDING_BEHIND,
    long_prompt.SLIDING_RESTORED,
    tool_loop.SLIDING_TOOL_LOOP,
    floor.THROUGHPUT,
    floor.TTFT,
)
FLOOR = "mlx-lm, no server"
_OWN, _REFERENCE = "configi", "mlx_lm.server"


def measured(scenario: Scenario, repeat: int) -> Result:
    """All sides of `scenario`, `repeat` times. The floor, if it has one, is what configi is measured against."""
    kinds = [kind for kind in scenario.kinds if kind not in PEERS or PEERS[kind].installed]
    ways: dict[str, tuple[Kind, Callable[[Side], Measured]]] = {kind: (kind, scenario.measure) for kind in kinds}
    if scenario.floor is not None:
        ways = {FLOOR: (KINDS[0], scenario.floor)} | ways
    repetitions: dict[str, list[Measured]] = {name: [] for name in ways}
    failed: dict[str, str] = {}
    for number in range(repeat):
        # In turn within a repetition: a machine that grows slower or faster meets all sides.
        for name, (kind, measure) in ways.items():
            if name in failed:
                continue
            print(f"{scenario.name} {number + 1}/{repeat}: {name} ...", end=" ", file=sys.stderr, flush=True)
            start = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="configi-bench-", ignore_cleanup_errors=True) as folder:
                side = Side(kind, MODELS[scenario.model](cache_folder()), Path(folder), number)
                try:
                    repetitions[name].append(measure(side))
                except (NoAnswer, ServerFailed) as error:
                    if name not in PEERS:
                        raise
                    failed[name] = " ".join(str(error).split())[:200]
            print(f"{time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    sides = {name: median_of(measured) for name, measured in repetitions.items() if name not in failed}
    return _result(scenario, sides, failed)


def _result(scenario: Scenario, sides: dict[str, Measured], failed: dict[str, str]) -> Result:
    reference = next((name for name in sides if name != _OWN), "")
    curves = (
        Curve(plot.name, plot.title, plot.x, plot.y, {side: m.curves[plot.name] for side, m in sides.items()})
        for plot in scenario.plots
    )
    peers = {name: side for name, side in sides.items() if name not in (reference, _OWN)}
    compared = _REFERENCE in sides
    return Result(
        scenario=scenario.name,
        title=scenario.title,
        reference=reference,
        setup=setup(),
        figures=figures(scenario.rows, sides.get(reference), sides[_OWN], peers),
        notes=tuple(_notes(scenario, sides, failed)),
        curves=tuple(curves),
        answers=len(sides[_OWN].answers) if compared else 0,
        same=same_answers(sides[_REFERENCE], sides[_OWN]) if compared else 0,
    )


def _notes(scenario: Scenario, sides: dict[str, Measured], failed: dict[str, str]) -> list[str]:
    """Which versions were measured, and who is left out and why."""
    missing = [kind for kind in scenario.kinds if kind in PEERS and kind not in sides]
    return [
        *(f"{name} {PEERS[name].version()}." for name in sides if name in PEERS),
        *(f"{name} is left out: {failed.get(name, 'not installed, see `python -m bench.peers`')}." for name in missing),
    ]


def main() -> int:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m bench.serving")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"one of {', '.join(names)}")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON files")
    args = parser.parse_args()
    if unknown := set(args.scenarios) - set(names):
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    done = [run(s, args.repeat, args.output) for s in SCENARIOS if not args.scenarios or s.name in args.scenarios]
    return int(not all(done))


def run(scenario: Scenario, repeat: int, output: Path) -> bool:
    """Measure, print and record it; False when one of these could not be."""
    before = disturbance()
    try:
        result = measured(scenario, repeat)
    except (NoAnswer, ServerFailed) as error:
        print(f"{scenario.name}: {error}", file=sys.stderr)
        return False
    print("\n".join(lines(result)), flush=True)
    if disturbed := before or disturbance():
        print(f"  NOT RECORDED: {disturbed}.", flush=True)
        return False
    write(result, output)
    return True


if __name__ == "__main__":
    sys.exit(main())
