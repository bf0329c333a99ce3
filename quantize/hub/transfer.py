"""One large file of the Hub onto this disk: resumed from where an earlier process stopped, then checked."""

from __future__ import annotations

import functools
import io
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from quantize.errors import HubError
from quantize.folder.hashing import sha256_of
from quantize.hub import compat
from quantize.hub.cache import RepoFile
from quantize.hub.client import Repository
from quantize.names import checked_name, checked_sha256
from quantize.printable import echo

# Left free beside the file, for the file system's own needs.
SPARE_BYTES = 100_000_000
# A corrupt file is downloaded again once.
_ATTEMPTS = 2

T = TypeVar("T")
# Called with the number of bytes on this disk.
Arrived = Callable[[int], None]


class CorruptFile(HubError):
    """It arrived twice, both times not as the Hub describes it."""


def missing_bytes(file: RepoFile, target: Path | None) -> int:
    """What a transfer to `target` still has to download; all of a file that has no place of its own yet."""
    if target is None:
        return file.size
    return max(0, file.size - max(_size(target), _size(_partial(target))))


def is_intact(path: Path, file: RepoFile) -> bool:
    """Whether the file at `path` has the size and the sha256 that the Hub names."""
    return _size(path) == file.size and (file.sha256 is None or sha256_of(path) == file.sha256)


def transfer(repository: Repository, file: RepoFile, target: Path, arrived: Arrived) -> None:
    """`target` appears when it is complete and has the Hub's sha256; until then its bytes are in a `.part` beside it.

    Raises:
        HubError: it cannot be obtained. What has arrived is kept, unless it is corrupt.
    """
    partial = _partial(target)
    for _ in range(_ATTEMPTS):
        _complete(repository, file, partial, arrived)
        if is_intact(partial, file):
            partial.replace(target)
            return
        partial.unlink()
        echo(f"{file.name} arrived corrupt.", err=True)
    raise CorruptFile(f"{file.name} arrives corrupt (its sha256 is not the Hub's).", retryable=True)


def into_cache(repository: Repository, file: RepoFile, arrived: Arrived) -> Path:
    """The file in the Hub's cache, intact, where every other tool finds it too. Raises HubError."""
    from filelock import FileLock
    from huggingface_hub import hf_hub_download

    if (blob := blob_path(repository.name, file)) is not None:
        lock = compat.blob_lock(blob)
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        # huggingface_hub waits for this transfer, and then finds the blob.
        with FileLock(lock):
            if not is_intact(blob, file):
                transfer(repository, file, blob, arrived)
    timeout = repository.retry.timeout_s
    link = functools.partial(hf_hub_download, revision=repository.commit, etag_timeout=timeout)
    return Path(repository.retrying(functools.partial(link, repository.name, file.name)))


def blob_path(repo: str, file: RepoFile) -> Path | None:
    """Where the content of a large file is in the cache; small ones are left to huggingface_hub."""
    if file.sha256 is None:
        return None
    return compat.storage_folder(repo) / "blobs" / checked_sha256(file.sha256)


def in_background(action: Callable[[], T]) -> Future[T]:
    """In a daemon thread, not in a pool: a pool's threads would keep a process that failed alive until they end."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="hub-transfer", daemon=True).start()
    return future


def _complete(repository: Repository, file: RepoFile, partial: Path, arrived: Arrived) -> None:
    """Download the rest of the file into `partial`."""
    while True:
        before = _size(partial)
        try:
            return repository.retrying(functools.partial(_attempt, repository, file, partial, arrived))
        except HubError as error:
            # Attempts are counted from the last byte that came: 50 GB may meet more cuts than one request.
            if not error.again or _size(partial) <= before:
                raise


def _attempt(repository: Repository, file: RepoFile, partial: Path, arrived: Arrived) -> None:
    if (here := _size(partial)) > file.size:
        partial.unlink()
        here = 0
    needed, free = file.size - here, shutil.disk_usage(partial.parent).free
    if needed + SPARE_BYTES > free:
        message = f"{file.name} needs {needed / 1e9:.1f} GB of disk space, {free / 1e9:.1f} GB is free."
        raise HubError(message, retryable=True)
    if file.size > compat.largest_download():
        raise HubError(f"{file.name} is larger than the 50 GB that the Hub gives in one transfer.", retryable=False)
    arrived(here)
    # A buffered writer goes on after a short write; it passes chunks larger than its buffer on at once.
    with io.BufferedWriter(_Reporting(partial, arrived)) as into:
        compat.resume_download(repository.url(file.name), into, resume_size=here, expected_size=file.size)


class _Reporting(io.FileIO):
    """A file, open at its end, that reports its size after each write: only what a kill would leave counts."""

    def __init__(self, path: Path, arrived: Arrived) -> None:
        super().__init__(path, "ab")
        self._arrived = arrived

    def write(self, data: Any) -> int:
        count = super().write(data)
        self._arrived(self.tell())
        return count


def _partial(target: Path) -> Path:
    return target.with_name(checked_name(f"{target.name}.part"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
