"""One large file of the Hub onto this disk, from where an earlier process left off, and checked on the way.

huggingface_hub 2.4 begins a partial file anew in every process; its `http_get`, which does the transfer here, can
continue one that it is given.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from quantize.errors import HubError
from quantize.folder.hashing import sha256_of
from quantize.hub import cache as hub_cache
from quantize.hub.cache import RepoFile
from quantize.hub.client import Repository

# Left free beside the file, for the file system's own needs.
SPARE_BYTES = 100_000_000
_CHUNK = 2**20
# A corrupt file is fetched again once.
_TIMES = 2

T = TypeVar("T")
# Told the bytes that are here.
Arrived = Callable[[int], None]


def missing_bytes(file: RepoFile, target: Path) -> int:
    """What a transfer to `target` has still to bring."""
    return max(0, file.size - max(_size(target), _size(_partial(target))))


class CorruptFile(HubError):
    """It arrived twice, and not as the Hub describes it."""


def transfer(repository: Repository, file: RepoFile, target: Path, arrived: Arrived) -> None:
    """`target` appears when it is whole and has the Hub's sha256; what has arrived before is in a `.part` beside it.

    Raises:
        HubError: it cannot be had. What has arrived is kept, unless it is corrupt.
    """
    partial = _partial(target)
    for _ in range(_TIMES):
        sha256 = _arrive(repository, file, partial, arrived)
        if file.sha256 is None or sha256 == file.sha256:
            partial.replace(target)
            return
        partial.unlink()
        print(f"{file.name} arrived corrupt.", file=sys.stderr)
    raise CorruptFile(f"{file.name} arrives corrupt (its sha256 is not the Hub's).", retryable=True)


def _arrive(repository: Repository, file: RepoFile, partial: Path, arrived: Arrived) -> str:
    """All of the file into `partial`. Returns its sha256."""
    while True:
        before = _size(partial)
        try:
            return repository.retrying(functools.partial(_attempt, repository, file, partial, arrived))
        except HubError as error:
            # Tries are counted from the last byte that came: 50 GB may meet more cuts than one request.
            if not error.again or _size(partial) <= before:
                raise


def blob_path(repo: str, file: RepoFile) -> Path:
    return hub_cache.storage_folder(repo) / "blobs" / str(file.sha256)


def into_cache(repository: Repository, file: RepoFile, arrived: Arrived) -> Path:
    """The file in the Hub's cache, checked, where every other tool finds it too. Raises HubError."""
    from huggingface_hub import hf_hub_download

    if file.sha256 is not None:
        _blob_into_cache(repository, file, arrived)
    link = functools.partial(
        hf_hub_download,
        repository.name,
        file.name,
        revision=repository.commit,
        etag_timeout=repository.retry.timeout_s,
    )
    return Path(repository.retrying(link))


def in_background(action: Callable[[], T]) -> Future[T]:
    """Not in a pool: its threads would keep a process that gave up alive until the transfer ends."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="hub-transfer", daemon=True).start()
    return future


def _blob_into_cache(repository: Repository, file: RepoFile, arrived: Arrived) -> None:
    """Under the names that huggingface_hub gives blob and lock: it waits for this transfer, and finds the blob."""
    from filelock import FileLock

    blob = blob_path(repository.name, file)
    lock = hub_cache.cache_folder() / ".locks" / blob.parent.parent.name / f"{blob.name}.lock"
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        if _size(blob) != file.size or sha256_of(blob) != file.sha256:
            transfer(repository, file, blob, arrived)


def _attempt(repository: Repository, file: RepoFile, partial: Path, arrived: Arrived) -> str:
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    if _size(partial) > file.size:
        partial.unlink()
    _check_space(partial, file)
    if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise HubError(f"{file.name} is larger than the 50 GB that the Hub gives in one transfer.", retryable=False)
    silent: Any = _SilentBar
    with _Checked(partial, arrived) as checked:
        http_get(
            repository.url(file.name),
            checked,  # type: ignore[arg-type]
            resume_size=checked.tell(),
            headers=build_hf_headers(),
            expected_size=file.size,
            tqdm_class=silent,
        )
    return checked.sha256


class _Checked:
    """As much of a binary file as `http_get` needs, open at its end; knows the sha256 of all that is in it."""

    def __init__(self, path: Path, arrived: Arrived) -> None:
        self._arrived = arrived
        self._hash = hashlib.sha256()
        # Unbuffered: what was received is in the file whatever ends the process.
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        while read := self._file.read(_CHUNK):
            self._hash.update(read)
        arrived(self.tell())

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = self._file.write(view)
            self._hash.update(view[:count])
            view = view[count:]
        self._arrived(self.tell())

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int) -> None:
        self._file.seek(position)

    def truncate(self) -> None:
        """For a server that begins anew: `http_get` goes to the start before it calls this."""
        self._file.truncate()
        self._hash = hashlib.sha256()

    def __enter__(self) -> _Checked:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _SilentBar:
    """What `http_get` needs of a tqdm class."""

    def __init__(self, **_: Any) -> None: ...

    def update(self, _: float) -> None: ...

    def __enter__(self) -> _SilentBar:
        return self

    def __exit__(self, *_: object) -> None: ...


def _partial(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _check_space(partial: Path, file: RepoFile) -> None:
    needed = file.size - _size(partial)
    free = shutil.disk_usage(partial.parent).free
    if needed + SPARE_BYTES > free:
        message = f"{file.name} needs {needed / 1e9:.1f} GB of disk space, {free / 1e9:.1f} GB are free."
        raise HubError(message, retryable=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
