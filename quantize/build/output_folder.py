"""The output folder of a build, and the hidden staging folder beside it that holds everything until it is complete.

    .NAME.building/lock        held by the process that builds
    .NAME.building/journal     the finished work
    .NAME.building/calibration what a calibration has solved
    .NAME.building/model/      becomes the output, by one rename

So a partial output is never visible, and the next build finds whatever a killed one left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from quantize.errors import OutputError, VerifyError, output_error
from quantize.files import sync
from quantize.folder.manifest import read_manifest
from quantize.folder.quant_spec import QuantSpec
from quantize.plan.plan import Plan
from quantize.progress import Progress

# For the small files and the file system's own blocks.
_SPARE_BYTES = 64_000_000


class OutputFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder.expanduser().resolve()
        self._given = folder
        self.work = self.folder.with_name(f".{self.folder.name}.building")
        self.model = self.work / "model"
        self.journal = self.work / "journal"
        self.calibration = self.work / "calibration"

    def is_built(self, plan: Plan) -> bool:
        """Raises OutputError if the path is taken by something else; an empty folder does not count."""
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
                raise OutputError(f"{self._given} was built before and is damaged; remove it to build it again.")
        raise OutputError(f"{self._given} already exists and is not the result of this build; it was left unchanged.")

    def widths_built(self, plan: Plan) -> dict[str, QuantSpec] | None:
        """Those within the layers, where a build of this source with this calibration is complete."""
        with contextlib.suppress(VerifyError):
            manifest = read_manifest(self.folder) if self.folder.is_dir() else None
            if (
                manifest is not None
                and manifest.calibration is not None
                and manifest.calibration.identity == plan.calibration
                and manifest.source.identity == plan.source_identity
            ):
                tensors = [(output, manifest.tensors.get(output.name)) for output in plan.tensors]
                return {
                    output.name: QuantSpec(built.bits, built.group_size)
                    for output, built in tensors
                    if output.layer is not None and output.spec is not None
                    if built is not None and built.bits is not None and built.group_size is not None
                }
        return None

    @contextlib.contextmanager
    def locked(self, progress: Progress) -> Iterator[None]:
        """Excludes every other builder of this output, in any process."""
        lock = FileLock(self.work / "lock")
        with write_errors(f"Making {self._given}"):
            self._acquire(lock, progress)
        try:
            yield
        finally:
            lock.release()

    def _acquire(self, lock: FileLock, progress: Progress) -> None:
        while True:
            self.work.mkdir(parents=True, exist_ok=True)
            # Publishing removes the folder, and with it the lock file that others wait for.
            with contextlib.suppress(FileNotFoundError):
                try:
                    lock.acquire(blocking=False)
                except Timeout:
                    progress("waiting", 0, None, "another process is building this model")
                    lock.acquire()
                if self.work.is_dir():
                    return
                lock.release()

    def check_space(self, plan: Plan, scratch_bytes: int) -> None:
        """Raises OutputError if the disk cannot hold what is still to be written."""
        present = sum(_allocated(path) for path in self.work.rglob("*"))
        needed = plan.output_bytes - present + scratch_bytes + _SPARE_BYTES
        free = shutil.disk_usage(next(folder for folder in self.work.parents if folder.is_dir())).free
        if needed > free:
            raise OutputError(
                f"The build needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB is free at {self._given.parent}.",
                retryable=True,
            )

    def begin(self, plan: Plan) -> None:
        """Create the model's folder; a journal without the files it describes is discarded."""
        self.model.mkdir(exist_ok=True)
        if any(_size(self.model / file.name) != file.header.size for file in plan.files):
            self.journal.unlink(missing_ok=True)

    def sync_folders(self) -> None:
        """Flush directory entries of new files, as their contents will be."""
        for folder in (self.model, self.work, self.work.parent):
            sync(folder)

    def keep(self, names: Sequence[str]) -> None:
        """Remove everything an earlier build left except these files."""
        for path in self.model.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in names:
                path.unlink()

    def publish(self) -> None:
        """Flush everything to the disk, then rename the folder into place."""
        for path in [*self.model.rglob("*"), self.model]:
            sync(path)
        self.model.rename(self.folder)
        sync(self.folder.parent)

    def sweep(self) -> None:
        """Remove what only the running build needed."""
        shutil.rmtree(self.work, ignore_errors=True)


@contextlib.contextmanager
def write_errors(doing: str) -> Iterator[None]:
    """Turn an OSError while writing into a sentence."""
    try:
        yield
    except OSError as error:
        raise output_error(error, doing) from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512
