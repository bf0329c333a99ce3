"""What a run of `make hostile` says: each row beside the quiet figures, what is broken, and the summary. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench.hostile.stage import KINDS, Kind
from bench.result import Figure, Result, Target
from bench.setup import setup

# Beyond the quiet figures; times the factor for a busy machine.
HEALTH_MS, TOKEN_MS = 100, 250
# What memory may keep: allocators do not give all of it back.
_KEPT = 1.1


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nobody attacks: seconds, and resident bytes by kind of process."""

    health_s: float
    token_s: float
    usual_health_s: float
    usual_token_s: float


@dataclass(frozen=True, slots=True)
class Seen:
    """One row. `health_s`, `token_s` (of each stream): the longest time without. `next_s`: the next small request, None
    when it was not answered. `before`, `worst`, `after`: resident bytes. `killed`: it had to be, to go on."""

    plan: str
    row: str
    outcomes: Mapping[str, int]
    health_s: float
    token_s: Sequence[float]
    ended: Sequence[str]
    next_s: float | None
    before: Mapping[Kind, int]
    worst: Mapping[Kind, int]
    after: Mapping[Kind, int]
    workers: int = 0
    killed: bool = False
    trespass: str = ""
    # Processors that other programs took meanwhile.
    others: float = 0.0

    @property
    def disturbed(self) -> bool:
        return self.others > _DISTURBED

    def broken(self, quiet: Quiet, factor: float) -> list[str]:
        """The promises that it broke."""
        said = []
        if (health := (self.health_s - quiet.health_s) * 1e3) > HEALTH_MS * factor:
            said.append(f"/health +{health:.0f} ms")
        if (token := (max(self.token_s) - quiet.token_s) * 1e3) > TOKEN_MS * factor:
            said.append(f"token +{token:.0f} ms")
        said += [f"a stream ended: {why}" for why in self.ended]
        if self.next_s is None:
            said.append("the next request was not answered")
        if self.killed:
            said.append("the server had to be killed")
        if self.workers:
            said.append(f"{self.workers} workers left")
        if self.trespass:
            said.append(self.trespass)
        return said + ([] if self.killed else kept(self.before, self.after))


def kept(before: Mapping[Kind, int], after: Mapping[Kind, int]) -> list[str]:
    """Which kind of process holds clearly more than before, where there was one."""
    grown = [kind for kind in KINDS if before[kind] and after[kind] > _KEPT * before[kind]]
    return [f"{kind}: {_mib(after[kind])} MiB, {_mib(before[kind])} before" for kind in grown]


# Of a processor: beyond it, what a row shows is not this server's alone.
_DISTURBED = 0.1


def better(first: Seen, second: Seen, quiet: Quiet, factor: float) -> Seen:
    """Of two tries of one row, the one that kept more promises: what it cannot break twice is not its doing."""
    return min((first, second), key=lambda seen: (len(seen.broken(quiet, factor)), seen.health_s))


@dataclass(slots=True)
class Run:
    """All of it. `quiet`: None before the first look. `ends`: what is wrong with how a server ended, by plan."""

    quiet: Quiet | None
    factor: float
    rows: list[Seen] = field(default_factory=list)
    ends: dict[str, str] = field(default_factory=dict)

    @property
    def broken(self) -> list[str]:
        quiet = self.quiet or Quiet(0, 0, 0, 0)
        rows = [f"{row.row}: {said}" for row in self.rows for said in row.broken(quiet, self.factor)]
        return rows + [f"{plan}, at its end: {said}" for plan, said in self.ends.items()]


def table(run: Run) -> str:
    """For a terminal, and for a note."""
    quiet = run.quiet or Quiet(0, 0, 0, 0)
    lines = [
        f"quiet: /health every {quiet.usual_health_s * 1e3:.0f} ms (at worst {quiet.health_s * 1e3:.0f}), "
        f"a token every {quiet.usual_token_s * 1e3:.1f} ms (at worst {quiet.token_s * 1e3:.0f})",
        "",
        f"{'row':58} {'/health':>8} {'token':>13} {'next':>6}  {'worst MiB: HTTP, engine, text, body':>35}  outcome",
        *map(line, run.rows),
        "",
    ]
    failing = {row.row for row in run.rows if row.broken(quiet, run.factor)}
    lines += [f"BROKEN  {said}" for said in run.broken]
    lines.append(f"{len(run.rows)} rows, {len(failing)} broken; limits: /health +{HEALTH_MS * run.factor:.0f} ms, "
                 f"token +{TOKEN_MS * run.factor:.0f} ms beyond the quiet figures.")  # fmt: skip
    return "\n".join(lines)


def line(row: Seen) -> str:
    tokens = " ".join(f"{s * 1e3:.0f}" for s in row.token_s)
    memory = " ".join(f"{_mib(row.worst[kind]):>6}" for kind in KINDS[:4])
    after = "" if row.next_s is None else f"{row.next_s:.1f}"
    said = ", ".join(f"{count} x {what}" for what, count in row.outcomes.items())
    marks = ("", " KILLED")[row.killed] + ("", f" {len(row.ended)} STREAMS ENDED")[bool(row.ended)]
    return f"{row.row:58} {row.health_s * 1e3:>8.0f} {tokens:>13} {after:>6}  {memory:>35}  {said}{marks}"


def summary(run: Run) -> Result:
    """For bench/results/."""
    none = Target(0, absolute=True)
    rows, quiet = run.rows, run.quiet or Quiet(0, 0, 0, 0)
    health, token = max(row.health_s for row in rows), max(max(row.token_s) for row in rows)

    def most(label: str, unit: str, before: float | None, value: float, bound: float | None = None) -> Figure:
        return Figure(label, unit, before, value, None if bound is None else Target(bound, absolute=True))

    health_bound = round(quiet.health_s * 1e3 + HEALTH_MS * run.factor)
    token_bound = round(quiet.token_s * 1e3 + TOKEN_MS * run.factor)
    figures = [
        most("longest time without `/health`", "ms", quiet.health_s * 1e3, health * 1e3, health_bound),
        most("longest time without a token of a stream", "ms", quiet.token_s * 1e3, token * 1e3, token_bound),
        Figure("innocent streams ended", "", None, sum(len(row.ended) for row in rows), none),
        Figure("next request not answered", "", None, sum(row.next_s is None for row in rows), none),
        Figure("servers that had to be killed", "", None, sum(row.killed for row in rows), none),
        Figure("promises broken, all together", "", None, len(run.broken), none),
    ]
    for kind in KINDS[:4]:
        worst = max(rows, key=lambda row: row.worst[kind])
        figures.append(most(f"{kind}: memory at worst", "MiB", _mib(worst.before[kind]), _mib(worst.worst[kind])))
    title = f"{len(rows)} rows of hostile inputs while two streams run"
    return Result("hostile", title, "quiet", setup(), tuple(figures), tuple(run.broken))


def _mib(count: int) -> int:
    return round(count / 2**20)
