"""KV segments on disk, so that a restart or an unload forgets no prompt. Runs in the engine process.

One safetensors file per segment, written by mlx-lm's `save_prompt_cache`, in a folder named by its model's fingerprint.
Its name is the sha256 of the tokens up to the segment's end and the sha256 of the file, so damage by a crash or a disk
is noticed on reading and is a miss. The files of all models together are capped; those used longest ago go first.
Prompts are private: folder 0700, files 0600.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from server.engine import compat
from server.engine.compat import Layers
from server.engine_client.protocol import Kind

log = logging.getLogger("configi.engine")

_FORMAT = "configi-prefix-1"
# Files of all models; a start reads the header of each of its model's.
_MOST_FILES = 4096
# Before the first read: what every SSD of a Mac does at least.
_ASSUMED_BYTES_PER_S = 1e9


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A file. `tokens` are all from the beginning, the segment is those from `start`; `resumable`: with all layers."""

    path: Path
    nbytes: int
    tokens: tuple[int, ...]
    start: int
    kind: Kind
    resumable: bool


class DiskTier:
    """`folder` is that of all models; None or a `limit` of 0 keeps nothing. `fingerprint` names the model."""

    def __init__(self, folder: Path | None, fingerprint: str, limit: int) -> None:
        self.enabled = folder is not None and limit > 0
        self._root = folder or Path()
        self._folder = self._root / fingerprint
        self._limit = limit
        self._read_bytes_per_s = _ASSUMED_BYTES_PER_S
        if self.enabled:
            try:
                self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._folder.mkdir(exist_ok=True, mode=0o700)
            except OSError as error:
                self._give_up(error)

    def scan(self) -> list[StoredSegment]:
        """The model's segments, shorter prefixes first. What is not one is removed."""
        if not self.enabled:
            return []
        found = []
        for path in self._folder.iterdir():
            segment = _described(path) if path.suffix == ".safetensors" else None
            if segment is None:
                _unlink(path)
            else:
                found.append(segment)
        return sorted(found, key=lambda segment: len(segment.tokens))

    def holds(self, segment: StoredSegment) -> bool:
        return segment.path.exists()

    def delete(self, segment: StoredSegment) -> None:
        _unlink(segment.path)

    def seconds_to_read(self, nbytes: int) -> float:
        return nbytes / self._read_bytes_per_s

    def write(self, tokens: Sequence[int], start: int, kind: Kind, segment: Layers) -> StoredSegment | None:
        """None when the disk refuses; then nothing more is written."""
        present = [index for index, layer in enumerate(segment) if layer is not None]
        facts = {
            "format": _FORMAT, "tokens": json.dumps(list(tokens)), "start": str(start), "kind": kind,
            "layers": json.dumps([len(segment), present]),
        }  # fmt: skip
        partial = self._folder / f"{os.getpid()}.partial.safetensors"
        try:
            save_prompt_cache(str(partial), [segment[index] for index in present], facts)
            partial.chmod(0o600)
            path = self._folder / f"{_key(tokens)}-{_digest(partial)}.safetensors"
            nbytes = partial.stat().st_size
            partial.rename(path)
        except (OSError, RuntimeError) as error:
            _unlink(partial)
            self._give_up(error)
            return None
        self._make_room(path)
        return StoredSegment(path, nbytes, tuple(tokens), start, kind, len(present) == len(segment))

    def read(self, stored: StoredSegment) -> Layers | None:
        """None when the file is gone or damaged."""
        begun = time.monotonic()
        try:
            if not stored.path.stem.endswith(f"-{_digest(stored.path)}"):
                raise ValueError("its checksum is wrong")
            layers, facts = load_prompt_cache(str(stored.path), return_metadata=True)
            mx.eval([layer.state for layer in layers])
            os.utime(stored.path)
        # Whatever a damaged file makes a reader raise.
        except Exception as error:
            log.warning("a stored prefix cannot be read and is forgotten: %s", error)
            return None
        seconds = max(time.monotonic() - begun, 1e-6)
        self._read_bytes_per_s += 0.3 * (stored.nbytes / seconds - self._read_bytes_per_s)
        count, present = json.loads(facts["layers"])
        segment: Layers = [None] * count
        for index, layer in zip(present, layers, strict=True):
            segment[index] = layer
        return segment

    def _make_room(self, newest: Path) -> None:
        """Of all models' files, those used longest ago go until the rest fits."""
        files = [(path.stat(), path) for path in self._root.glob("*/*.safetensors")]
        total, count = sum(stat.st_size for stat, _ in files), len(files)
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime_ns):
            if total <= self._limit and count <= _MOST_FILES:
                return
            if path != newest or stat.st_size > self._limit:
                _unlink(path)
                total, count = total - stat.st_size, count - 1

    def _give_up(self, error: Exception) -> None:
        self.enabled = False
        log.warning("prefixes are not kept on disk: %s", getattr(error, "strerror", None) or error)


def _key(tokens: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _described(path: Path) -> StoredSegment | None:
    """What the header says; the arrays are not read. None for what is no segment of this format."""
    with contextlib.suppress(Exception):
        facts = compat.saved_metadata(path)
        tokens = tuple(json.loads(facts["tokens"]))
        if facts["format"] == _FORMAT and path.name.startswith(_key(tokens)):
            count, present = json.loads(facts["layers"])
            nbytes, resumable = path.stat().st_size, len(present) == count
            return StoredSegment(path, nbytes, tokens, int(facts["start"]), facts["kind"], resumable)
    return None


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
