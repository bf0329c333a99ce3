"""The place of a build: the output folder, and the hidden one beside it where everything stands until it is whole.

    .NAME.building/lock        held while somebody builds
    .NAME.building/journal     what is finished
    .NAME.building/model/      becomes the output, by one rename

So the output is never seen half made, and whatever a killed build leaves, the next one finds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from quantize.errors import OutputError, VerifyError, output_error
from quantize.folder.manifest import read_manifest
from quantize.plan.plan import Plan
from quantize.progress import Progress

# For the small files, the file system's own blocks, and room to breathe.
_SPARE_BYTES = 64_000_000


class Output:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        self._given = folder
        self.work = self.folder.with_name(f".{self.folder.name}.building")
        self.model = self.work / "model"
        self.journal = self.work / "journal"

    def is_built(self, plan: Plan) -> bool:
        """Raises OutputError when something else is there. An empty folder is nothing."""
        if not os.path.lexists(self.folder):
            return False
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            return False
        with contextlib.suppress(VerifyError):
            manifest = read_manifest(self.folder) if self.folder.is_dir() else None
            if manifest is not None and manifest.plan == plan.fingerprint:
                sizes = {name: file.size for name, file in manifest.files.items()}
                if all(_size(self.folder / name) == size for name, size in sizes.items()):
                    return True
                raise OutputError(f"{self._given} was built before and is damaged now; remove it to build it again.")
        raise OutputError(f"{self._given} is there already and is not what this build makes; it is left as it is.")

    @contextlib.contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """The only builder of this output, in this process or any other."""
        lock = FileLock(self.work / "lock")
        with written(f"Making {self._given}"):
            self._acquire(lock, progress)
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, progress: Progress) -> None:
        while True:
            self.work.mkdir(parents=True, exist_ok=True)
            # Whoever publishes takes the folder away, and with it the file that others wait for.
            with contextlib.suppress(FileNotFoundError):
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    progress("waiting", 0, None, "another process builds this model")
                    lock.acquire()
                if self.work.is_dir():
                    return
                lock.release()

    def check_space(self, plan: Plan, scratch_bytes: int) -> None:
        """Raises OutputError when the disk cannot hold what is still to be written."""
        there = sum(_allocated(path) for path in self.work.rglob("*"))
        needed = plan.output_bytes - there + scratch_bytes + _SPARE_BYTES
        free = shutil.disk_usage(next(folder for folder in self.work.parents if folder.is_dir())).free
        if needed > free:
            raise OutputError(
                f"The build needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free at {self._given.parent}.",
                retryable=True,
            )

    def begin(self, plan: Plan) -> None:
        """The folder of the model; a journal counts for nothing without the files that it speaks of."""
        self.model.mkdir(exist_ok=True)
        if any(_size(self.model / file.name) != file.header.size for file in plan.files):
            self.journal.unlink(missing_ok=True)

    def sync_folders(self) -> None:
        """The names of new files reach the disk, as their contents will."""
        for folder in (self.model, self.work, self.work.parent):
            _sync(folder)

    def keep(self, names: Sequence[str]) -> None:
        """Of what an earlier build left, only these files."""
        for path in self.model.iterdir():
            if path.name not in names:
                path.unlink()

    def publish(self) -> None:
        """Everything reaches the disk, then the folder its name."""
        for path in [*self.model.iterdir(), self.model]:
            _sync(path)
        self.model.rename(self.folder)
        _sync(self.folder.parent)

    def sweep(self) -> None:
        """What a build needed only while it ran."""
        shutil.rmtree(self.work, ignore_errors=True)


@contextlib.contextmanager
def written(doing: str) -> Iterator[None]:
    """An OSError while writing, as a sentence."""
    try:
        yield
    except OSError as error:
        raise output_error(error, doing) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
