"""The standing proof: `python -m bench.hostile [--full] [--only WORDS] [--factor 1] [--seed 0]`, or `make hostile`.

Two streams and a prober of /health run, each in a process of its own, while hostile requests are sent row by row:
bodies that parsers are slow on, texts and models that want more time or memory than anybody has, many clients at once.
Exit code 1 when somebody else paid for one: /health or a token came too late, a stream ended, memory was kept.

No pytest: what it holds are times on the machine it runs on, which is what tests must not depend on. What each row must
answer is held by tests; docs/security.md says by which.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.hostile.attack import Shot, chat, fire
from bench.hostile.rows import FULL, SHORT, Plan, Row, plans
from bench.hostile.stage import KINDS, Kind, Metered, Others, Stage, Watched
from bench.hostile.verdict import Quiet, Run, Seen, better, kept, line, summary, table
from bench.result import RESULTS, write
from bench.servers import ServerFailed
from tests.support.loopback_hub import hub_environment, loopback_hub

# The quietest of the first looks gives the figures, so that a disturbed one does not widen the limits. Before each
# other plan a short one says what its processes hold. They are as long as the rows: an engine holds what its longest
# stream took.
_LOOKS, _QUIET_S, _SHORT_QUIET_S = 2, 15.0, 2.0
# A stall that begins with the last answer is still to be seen.
_AFTER_S = 0.3
_NEXT_S, _ALIVE_S, _BACK_S = 4.0, 2.0, 10.0


def _quiet(stage: Stage, seconds: float) -> tuple[Watched, dict[Kind, int]]:
    stage.up()
    _warm_up(stage.port)
    with stage.looking(), Metered(stage.port) as meters:
        time.sleep(seconds)
        watched = meters.look()
    return watched, stage.memory.worst


def _warm_up(port: int) -> None:
    """What an honest client may ask at most: what that leaves behind is no attack's."""
    body = chat("bench", "Hi", unknown="a" * (7 * 10**6))
    text = json.dumps({"content": "hello " * 10_000}).encode()
    tokens = json.dumps({"tokens": [72] * 20_000}).encode()
    shots = [Shot("/v1/chat/completions", body), Shot("/tokenize", text), Shot("/detokenize", tokens)]
    fire(port, shots * 2, at_once=2, limit_s=10)


def _figures(looks: list[Watched]) -> Quiet:
    best = min(looks, key=lambda look: max(look.health_s, *look.token_s))
    return Quiet(
        health_s=min(look.health_s for look in looks),
        token_s=min(max(look.token_s) for look in looks),
        usual_health_s=best.health.usual(best.start, best.end),
        usual_token_s=best.streams[0].usual(best.start, best.end),
    )


def _row(stage: Stage, plan: Plan, row: Row, memory: dict[Kind, int], quiet: Quiet, factor: float) -> Seen:
    """Once more when it broke a promise: what it does to others, it does again; what the machine does, seldom."""
    stage.up()
    stage.look()
    # What an earlier row has left is blamed on that one, and on the whole at the end.
    before: dict[Kind, int] = {kind: max(memory[kind], stage.memory.now[kind]) for kind in KINDS}
    first = _try(stage, plan, row, before)
    if not (said := first.broken(quiet, factor)):
        return first
    others = f", others took {first.others:.1f} processors" if first.disturbed else ""
    print(f"{line(first)}\n    again: {', '.join(said)}{others}", file=sys.stderr, flush=True)
    return better(first, _try(stage, plan, row, before), quiet, factor)


def _try(stage: Stage, plan: Plan, row: Row, before: dict[Kind, int]) -> Seen:
    stage.up()
    shots = row.shots()
    with stage.looking(), Metered(stage.port) as meters:
        others = Others(stage)
        outcomes = fire(stage.port, shots, row.at_once, row.limit_s)
        time.sleep(_AFTER_S)
        following = stage.answer_s(_NEXT_S)
        watched = meters.look()
        share = others.share()
    worst = stage.memory.worst
    # /health alone does not say that anybody else is served.
    killed = following is None or not stage.answers(_ALIVE_S)
    if killed:
        stage.kill()
    else:
        _wait_until_back(stage, before)
    return Seen(
        plan=plan.name, row=row.name, outcomes=dict(outcomes), health_s=watched.health_s, token_s=watched.token_s,
        ended=watched.ended, next_s=following, before=before, worst=worst, after=stage.memory.now,
        workers=0 if killed else stage.workers(), killed=killed, trespass=row.trespass(), others=share,
    )  # fmt: skip


def _wait_until_back(stage: Stage, before: dict[Kind, int]) -> None:
    """Until nothing holds more than before, or it is clear that it keeps it."""
    end = time.monotonic() + _BACK_S
    stage.look()
    while time.monotonic() < end and (stage.workers() or kept(before, stage.memory.now)):
        time.sleep(0.2)
        stage.look()


@contextlib.contextmanager
def _staged(plan: Plan, folder: Path) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        hub: dict[str, str] = {}
        if plan.hub is not None:
            stack.enter_context(loopback_hub(plan.hub))
            hub = hub_environment(plan.hub, folder / "hub") | {"HF_HUB_OFFLINE": "0"}
        stage = Stage(folder / f"stage {plan.name}", plan.innocent, plan.hostile, hub)
        try:
            yield stage
        finally:
            stage.kill()


def run(folder: Path, extent: str, words: str, factor: float, seed: int) -> Run:
    made = Run(None, factor)
    engine = 0
    for plan in plans(folder, FULL if extent == "full" else SHORT, seed):
        rows = [row for row in plan.rows if words in f"{plan.name} {row.name}"]
        if not rows:
            continue
        memory: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        with _staged(plan, folder) as stage:
            try:
                if made.quiet is None:
                    looks = [_quiet(stage, _QUIET_S) for _ in range(_LOOKS)]
                    made.quiet = _figures([look for look, _ in looks])
                else:
                    looks = [_quiet(stage, _SHORT_QUIET_S)]
                for _, held in looks:
                    memory = {kind: max(memory[kind], held[kind]) for kind in KINDS}
                # An engine grows with the length of its streams: the longest quiet seconds say how far.
                memory["engine"] = engine = max(engine, memory["engine"])
                for row in rows:
                    made.rows.append(_row(stage, plan, row, memory, made.quiet, factor))
                    print(line(made.rows[-1]), file=sys.stderr, flush=True)
            except ServerFailed as error:
                made.ends[plan.name] = str(error)
                continue
            # Its streams have ended: an engine gives back what the longest of them took when it has nothing to do.
            _wait_until_back(stage, memory)
            said = [*kept(memory, stage.memory.now), *stage.end()]
            if said:
                made.ends[plan.name] = ", ".join(said)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile")
    parser.add_argument("--full", action="store_true", help="every field and size, 200 templates")
    parser.add_argument("--only", default="", metavar="WORDS", help="the rows whose plan and name hold these words")
    parser.add_argument("--factor", type=float, default=1.0, help="what the limits are multiplied by on a busy machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON files")
    args = parser.parse_args()
    # So that the servers and meters end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="configi-hostile-") as name:
        made = run(Path(name), "full" if args.full else "short", args.only, args.factor, args.seed)
    if not made.rows and not made.ends:
        parser.error(f"no row holds the words {args.only!r}")
    print(table(made))
    if not args.only:
        write(summary(made), args.output)
        rows = args.output / "hostile" / "rows.json"
        rows.parent.mkdir(exist_ok=True)
        rows.write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    return 1 if made.broken else 0


if __name__ == "__main__":
    sys.exit(main())
