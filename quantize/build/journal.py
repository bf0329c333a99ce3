"""What a build has finished, so that the next one resumes from there however this one ended.

An append-only file of lines. `done N`: work item N was written to the output files; that is enough after a kill, since
the kernel still writes back what a dead process wrote. `synced N`: the first N items are on the disk; after a reboot
only those count.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil

_LINUX_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Journal:
    """`done` holds the finished items of the build `build`; another build's journal is discarded. One writer."""

    def __init__(self, file: Path, build: str) -> None:
        self.done: set[int] = set()
        head = {"build": build, "boot": boot()}
        lines, entries = _lines(file), list[str]()
        if lines and (old := _head(lines[0])).get("build") == build:
            items, synced = _read(lines[1:])
            kept = items if old.get("boot") == head["boot"] else items[:synced]
            self.done = set(kept)
            entries = [f"done {item}" for item in kept]
            entries.insert(synced, f"synced {synced}")
        self._rewrite(file, [json.dumps(head), *entries])
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND)

    def add(self, item: int) -> None:
        self.done.add(item)
        self._append(f"done {item}")

    def synced(self, count: int) -> None:
        """The first `count` items of `done` have been synced."""
        self._append(f"synced {count}")
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: str) -> None:
        # A single small write: complete, or absent.
        os.write(self._file, f"{line}\n".encode())

    @staticmethod
    def _rewrite(file: Path, lines: list[str]) -> None:
        """Without the partial line that a full disk may have left."""
        new = file.with_suffix(".new")
        with new.open("w", encoding="ascii") as opened:
            opened.write("".join(f"{line}\n" for line in lines))
            opened.flush()
            os.fsync(opened.fileno())
        new.replace(file)


def boot() -> str:
    """Differs after each boot of the machine."""
    if _LINUX_BOOT.is_file():
        return _LINUX_BOOT.read_text(encoding="ascii").strip()
    return str(psutil.boot_time())


def _lines(file: Path) -> list[str]:
    """The complete lines; none if there is no file."""
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return []
    return text.split("\n")[:-1]


def _head(line: str) -> dict[str, str]:
    try:
        read = json.loads(line)
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _read(lines: list[str]) -> tuple[list[int], int]:
    """The items in order, and how many of them are on the disk. Damaged lines are skipped."""
    items: list[int] = []
    synced = 0
    for line in lines:
        word, _, number = line.partition(" ")
        if word == "done" and number.isdecimal():
            items.append(int(number))
        elif word == "synced" and number.isdecimal():
            synced = int(number)
    return items, synced
