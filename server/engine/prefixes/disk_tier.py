"""KV segments on disk, so that no prefix is lost at a restart or an unload. Runs in the engine process.

One safetensors file per segment, written by mlx-lm's `save_prompt_cache`, in a folder named by its model's fingerprint.
Its name is a sha256 of the salt and of the tokens up to the segment's end, and the sha256 of the file, so damage by a
crash or a disk is noticed on reading and is a miss. The files of all models together are capped; those used longest ago
go first.
Prompts are private: folders have mode 0700 and files 0600 from their creation on, and symbolic links are not followed.
Several servers may share the folder: each writes partial files of its own and leaves those of others alone, and a file
that another one removed is a miss.
`write` and `check` take long and need nothing of MLX's streams, so they may run in threads, one of each at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from server.engine import compat
from server.engine.compat import Layers
from server.engine.linear_cost import LinearCost
from server.engine_client.protocol import Kind

log = logging.getLogger("configi.engine")

_FORMAT = "configi-prefix-1"
# Files of all models; at its start an engine reads the header of each file of its model.
_MAX_FILES = 4096
# Before the first read: the least that any Mac's SSD does.
_ASSUMED_BYTES_PER_S = 1e9
# What a smaller file takes is a matter of threads and not of the disk: told by the byte, it would make every large one
# look slower than prefill.
_TELLING_BYTES = 2**22
_NO_BOUND = 2**63
_PARTIAL = ".partial.safetensors"
# Writing a segment takes seconds: an older partial file was left behind by a crash.
_PARTIAL_MAX_AGE_S = 3600
# A second try when somebody removed the partial file or the folder during the first.
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class StoredSegment:
    """A file. `tokens` are all from the beginning, the segment those from `start`. `resumable`: it has all layers.

    Only who has the same `salt` may find it.
    """

    path: Path
    nbytes: int
    tokens: tuple[int, ...]
    start: int
    kind: Kind
    resumable: bool
    salt: str = ""


class DiskTier:
    """`folder` is that of all models; None or a `limit` of 0 keeps nothing. `fingerprint` names the model. That no more
    than `hourly_limit` bytes are written in an hour is up to whoever calls `write`."""

    def __init__(self, folder: Path | None, fingerprint: str, limit: int, hourly_limit: int = _NO_BOUND) -> None:
        self.enabled = folder is not None and limit > 0
        self.hourly_limit = hourly_limit
        self._root = folder or Path()
        self._folder = self._root / fingerprint
        self._limit = limit
        self._reading = LinearCost()
        self._removed: set[Path] = set()
        # Unique also among hosts that share a network folder.
        self._partial = self._folder / f"{os.getpid()}-{uuid.uuid4().hex}{_PARTIAL}"
        if self.enabled:
            try:
                self._prepare_folders()
            except OSError as error:
                self._give_up(error)

    @property
    def hour(self) -> Path | None:
        """Where it is remembered how much may be written."""
        return self._root / "hour.json" if self.enabled else None

    def scan(self) -> list[StoredSegment]:
        """The model's segments, each behind those that hold what is before it: they start earlier, however long they
        are. Other files are removed, partial ones only when old."""
        if not self.enabled:
            return []
        try:
            paths = list(self._folder.iterdir())
        except OSError as error:
            self._give_up(error)
            return []
        found = []
        for path in paths:
            if _is_being_written(path):
                continue
            segment = _described(path)
            if segment is None:
                _unlink(path)
            else:
                found.append(segment)
        return sorted(found, key=lambda segment: (segment.start, len(segment.tokens)))

    def take_removed(self) -> set[Path]:
        """The files that made room for others since the last call, which is not made during a `write`."""
        removed, self._removed = self._removed, set()
        return removed

    def delete(self, stored: StoredSegment) -> None:
        _unlink(stored.path)

    def seconds_to_read(self, nbytes: int) -> float:
        return self._reading.seconds(nbytes) if self._reading.known else nbytes / _ASSUMED_BYTES_PER_S

    def write(
        self, tokens: Sequence[int], start: int, kind: Kind, segment: Layers, salt: str = ""
    ) -> StoredSegment | None:
        """None when it was not written. After a failure nothing more is."""
        for _ in range(_ATTEMPTS):
            try:
                stored = self._write(tokens, start, kind, segment, salt)
                self._make_room(stored.path)
                return stored
            except FileNotFoundError:
                _unlink(self._partial)
            # Whatever mlx-lm or a model's own cache raises: the requests under way have no part in it.
            except Exception as error:
                _unlink(self._partial)
                self._give_up(error)
                return None
        log.warning("a prefix is not kept on disk: its file was removed while it was written")
        return None

    def check(self, stored: StoredSegment) -> bool:
        """Read the file once, so that it is in the system's memory; whether it is there and undamaged."""
        with contextlib.suppress(OSError):
            return stored.path.stem.endswith(f"-{_digest(stored.path)}")
        return False

    def open(self, stored: StoredSegment) -> Layers | None:
        """The segment, to be evaluated layer by layer; None when it is none after all."""
        try:
            layers, facts = load_prompt_cache(str(stored.path), return_metadata=True)
            count, present = json.loads(facts["layers"])
            os.utime(stored.path)
        # Whatever a damaged file makes a reader raise.
        except Exception as error:
            log.warning("a stored prefix cannot be read and is forgotten: %s", error)
            return None
        segment: Layers = [None] * count
        for index, layer in zip(present, layers, strict=True):
            segment[index] = layer
        return segment

    def record_read(self, stored: StoredSegment, seconds: float) -> None:
        if stored.nbytes >= _TELLING_BYTES:
            self._reading.record(stored.nbytes, seconds)

    def _prepare_folders(self) -> None:
        self._root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._root, self._folder):
            _make_private(folder)

    def _write(self, tokens: Sequence[int], start: int, kind: Kind, segment: Layers, salt: str) -> StoredSegment:
        present = [index for index, layer in enumerate(segment) if layer is not None]
        facts = {
            "format": _FORMAT, "tokens": json.dumps(list(tokens)), "start": str(start), "kind": kind,
            "layers": json.dumps([len(segment), present]), "salt": salt,
        }  # fmt: skip
        self._prepare_folders()
        # mlx-lm opens a file by name, and one that exists keeps its mode.
        os.close(os.open(self._partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        save_prompt_cache(str(self._partial), [segment[index] for index in present], facts)
        path = self._folder / f"{_key(tokens, salt)}-{_digest(self._partial)}.safetensors"
        nbytes = self._partial.stat().st_size
        self._partial.rename(path)
        return StoredSegment(path, nbytes, tuple(tokens), start, kind, len(present) == len(segment), salt)

    def _make_room(self, newest: Path) -> None:
        """Of all models' files, remove those used longest ago until the rest fits."""
        files = sorted(self._files(), key=lambda file: file[0].st_mtime_ns)
        total, count = sum(facts.st_size for facts, _ in files), len(files)
        for facts, path in files:
            if total <= self._limit and count <= _MAX_FILES:
                return
            if path != newest or facts.st_size > self._limit:
                _unlink(path)
                self._removed.add(path)
                total, count = total - facts.st_size, count - 1

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        """Of all models, without what another server is writing; a link leads out of the folder and is left alone."""
        for folder in self._root.iterdir():
            if folder.is_symlink() or not folder.is_dir():
                continue
            for path in folder.glob("*.safetensors"):
                # Another server may be making room as well.
                with contextlib.suppress(FileNotFoundError):
                    facts = path.lstat()
                    if stat.S_ISREG(facts.st_mode) and not _is_being_written(path):
                        yield facts, path

    def _give_up(self, error: Exception) -> None:
        self.enabled = False
        log.warning("prefixes are not kept on disk: %s", getattr(error, "strerror", None) or error)


def _make_private(folder: Path) -> None:
    """Create `folder` for its owner only, or close an existing one to others.

    Raises:
        OSError: this is impossible, or it is somebody else's or a symbolic link, which may lead anywhere.
    """
    if folder.is_symlink():
        raise OSError("their folder is a symbolic link")
    folder.mkdir(exist_ok=True, mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def _is_being_written(path: Path) -> bool:
    """Whether it is a partial file young enough for its writer to be at work still."""
    with contextlib.suppress(FileNotFoundError):
        return path.name.endswith(_PARTIAL) and time.time() - path.lstat().st_mtime < _PARTIAL_MAX_AGE_S
    return False


def _key(tokens: Sequence[int], salt: str) -> str:
    return hashlib.sha256((json.dumps(list(tokens)) + salt).encode()).hexdigest()[:32]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _described(path: Path) -> StoredSegment | None:
    """What the header says; the arrays are not read. None when it is not a segment of this format."""
    if path.suffix != ".safetensors" or path.is_symlink():
        return None
    with contextlib.suppress(Exception):
        facts = compat.saved_metadata(path)
        # Files of before there were salts have none.
        tokens, salt = tuple(json.loads(facts["tokens"])), str(facts.get("salt", ""))
        if facts["format"] == _FORMAT and path.name.startswith(_key(tokens, salt)):
            count, present = json.loads(facts["layers"])
            nbytes, resumable = path.stat().st_size, len(present) == count
            return StoredSegment(path, nbytes, tokens, int(facts["start"]), facts["kind"], resumable, salt)
    return None


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
