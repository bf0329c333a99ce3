"""What clients could do with the server: one JSON file for each, in tests/clients/results/, and the table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tests.support.running import ROOT

RESULTS = ROOT / "tests" / "clients" / "results"
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
