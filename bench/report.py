"""`python -m bench.report`: draws the pictures of docs/performance.md anew from bench/results/."""

from __future__ import annotations

from bench.pictures import pictures
from bench.result import results
from bench.setup import ROOT

ASSETS = ROOT / "docs" / "assets"


def main() -> None:
    ASSETS.mkdir(exist_ok=True)
    for name, text in pictures(results()).items():
        (ASSETS / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
