"""Checks a model's files: `python -m server.models.verifying FOLDER STAMP`, a worker of `verified.py`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from quantize.folder.manifest import MANIFEST
from quantize.folder.verify import examine, is_unchanged, verify_and_stamp
from quantize.printable import echo
from quantize.worker import JsonLines, exit_with_parent


def _problems(folder: Path, stamp: Path, report: JsonLines) -> list[str]:
    found = examine(folder, thorough=False)
    for warning in found.warnings:
        echo(f"{folder}: {warning}", err=True)
    if found.problems or not (folder / MANIFEST).is_file() or is_unchanged(folder, stamp):
        return found.problems
    report("verifying", 0, None, "checking the sha256 of its files")
    return verify_and_stamp(folder, stamp)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server.models.verifying")
    parser.add_argument("folder", type=Path)
    parser.add_argument("stamp", type=Path, help="written when nothing is wrong")
    parser.add_argument("--watch-stdin", action="store_true", help="exit when stdin closes")
    args = parser.parse_args()
    if args.watch_stdin:
        exit_with_parent(sys.stdin.buffer)
    report = JsonLines(sys.stdout)
    if not args.folder.is_dir():
        report.error("The model's files are gone.", retryable=False)
        return 1
    if problems := _problems(args.folder, args.stamp, report):
        for problem in problems:
            echo(f"{args.folder}: {problem}", err=True)
        message = f"The model's files are damaged, so it is not loaded: {problems[0]}"
        report.error(message, retryable=False)
        return 1
    report.folder(str(args.folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
