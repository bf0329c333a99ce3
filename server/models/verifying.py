"""Checks the sha256 of a model's files: `python -m server.models.verifying FOLDER STAMP`, a worker of `verified.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quantize.folder.verify import verify_if_changed
from quantize.printable import echo
from quantize.worker import JsonLines, exit_with_parent
from server.models.verified import damaged


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server.models.verifying")
    parser.add_argument("folder", type=Path)
    parser.add_argument("stamp", type=Path, help="written when nothing is wrong")
    parser.add_argument("--watch-stdin", action="store_true", help="exit when stdin closes")
    args = parser.parse_args()
    if args.watch_stdin:
        exit_with_parent(sys.stdin.buffer)
    report = JsonLines(sys.stdout)
    if problems := verify_if_changed(args.folder, args.stamp):
        for problem in problems:
            echo(problem, err=True)
        report.error(damaged(problems[0]), retryable=False)
        return 1
    report.folder(str(args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
