"""What clients could do with the server: one JSON file for each, in tests/clients/results/, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

from tests.support.running import ROOT

RESULTS = ROOT / "tests" / "clients" / "results"
REPLAYS = ROOT / "tests" / "clients" / "replays.json"
# The features of each kind in the order of its table, with their heads.
FEATURES: Mapping[str, Mapping[str, str]] = {
    "sdk": {
        "plain": "Answer",
        "stream": "Stream",
        "tools": "Tool round trip",
        "forced": "Forced call",
        "structured": "Structured output",
        "reasoning": "Reasoning",
        "usage": "Usage",
        "overflow": "Too long",
        "unknown_model": "Unknown model",
        "wrong_key": "Wrong key",
    },
    "agent": {"plain": "First turn", "tools": "Two commands, run and told"},
}


def record(kind: str, client: str, api: str, version: str, outcomes: Mapping[str, str]) -> None:
    """`outcomes`: of each feature "yes", or why not."""
    RESULTS.mkdir(exist_ok=True)
    name = f"{client} {api}".lower().replace(" ", "-")
    row = {
        "kind": kind,
        "client": client,
        "api": api,
        "version": version,
        "features": {name: _brief(why) for name, why in outcomes.items()},
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(row, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def record_replay(client: str, api: str, how: str, counts: Sequence[tuple[int, int]]) -> None:
    """`how`: between the requests; `counts`: of each request the prompt's tokens, and those not read again."""
    known = json.loads(REPLAYS.read_text(encoding="utf-8")) if REPLAYS.exists() else {}
    known.setdefault(f"{client}, {api}", {})[how] = counts
    REPLAYS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n", encoding="utf-8")


def replays() -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of replays: of each request but the first what nobody could have read before, and how
    much of what the request before had read was not read again."""
    steps = ("Step 2", "Step 3")
    head = ["Agent", "Prompts, tokens", *(f"{step}: new text" for step in steps)]
    head += [f"{step}{how}: known, not read" for how in ("", ", restarted") for step in steps]
    known = json.loads(REPLAYS.read_text(encoding="utf-8")) if REPLAYS.exists() else {}
    rows = []
    for name, found in known.items():
        totals = [total for total, _ in found["one server"]]
        cells = [name, " → ".join(map(str, totals))]
        cells += [f"{after - before} ({100 * (after - before) / after:.1f} %)" for before, after in pairwise(totals)]
        for counts in (found["one server"], found["restarted"]):
            cells += [f"{100 * cached / before:.1f} %" for (before, _), (_, cached) in pairwise(counts)]
        rows.append(cells)
    return head, rows


def _brief(why: str) -> str:
    """What kind of outcome it is, and the last line of why: that of a traceback has the error."""
    kind, _, reason = why.partition(": ")
    return f"{kind}: {reason.splitlines()[-1][:300]}" if reason else kind


def table(kind: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Its head, its rows, and a note for each feature that a client does not have or that failed."""
    head = ["Client", "Version", "Protocol", *FEATURES[kind].values()]
    rows, notes = [], []
    for path in sorted(RESULTS.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        if row["kind"] != kind:
            continue
        outcomes = row["features"]
        cells = [
            outcomes.get(feature, "none: it has nothing of the kind").partition(":")[0] for feature in FEATURES[kind]
        ]
        rows.append([row["client"], row["version"], row["api"], *cells])
        notes += [
            f"{row['client']}, {row['api']}, {FEATURES[kind][name].lower()}: {why.partition(': ')[2]}"
            for name, why in outcomes.items()
            if why != "yes"
        ]
    return head, rows, notes
