"""Fetches a ready MLX model from the Hub into the Hub's own cache, so that its files are shared with other tools.

A process of its own (`python -m server.models.fetch REPO[@REVISION]`): it can be killed at any moment, and what is
whole by then is kept. It reports as `server.models.worker` describes.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from server.models import hub_cache
from server.models.hub_cache import RepoFile
from server.models.hub_faults import FetchFailed, cache_not_writable, explain
from server.models.worker import Report, exit_with_parent

_TRIES = 4
# The Hub may ask for a wait; a longer one is reported instead of slept through.
_LONGEST_WAIT_S = 60
# Left free beside the model, for the file system's own needs.
_SPARE_BYTES = 100_000_000

T = TypeVar("T")


class Fetch:
    """One repository at one commit."""

    def __init__(self, repo: str, revision: str | None, report: Report, *, timeout_s: float, backoff_s: float) -> None:
        self._repo = repo
        self._revision = revision
        self._report = report
        self._timeout_s = timeout_s
        self._backoff_s = backoff_s

    def run(self) -> Path:
        """The folder of the complete model. Raises FetchFailed."""
        commit, files = self._retrying(self._describe)
        folder = hub_cache.storage_folder(self._repo) / "snapshots" / commit
        self._check_writable()
        hub_cache.drop_cut(folder, files)
        hub_cache.sweep_orphans(self._repo)
        missing = [file for file in files if not (folder / file.name).exists()]
        self._check_space(sum(file.size for file in missing))
        self._retrying(functools.partial(self._download, commit, files, missing))
        hub_cache.remember_revision(self._repo, self._revision, commit)
        if hub_cache.cached_folder(self._repo, commit) is None:
            raise FetchFailed(f"The files of {self._repo} are damaged or incomplete on the Hub.", retryable=False)
        return folder

    def _describe(self) -> tuple[str, list[RepoFile]]:
        """The commit that the revision means now, and the files to fetch."""
        from huggingface_hub import HfApi

        info = HfApi().model_info(self._repo, revision=self._revision, files_metadata=True, timeout=self._timeout_s)
        listed = [
            RepoFile(item.rfilename, item.size or 0, item.lfs.sha256 if item.lfs else None)
            for item in info.siblings or []
        ]
        if any(file.name.startswith("/") or ".." in file.name.split("/") or "\\" in file.name for file in listed):
            raise FetchFailed(f"{self._repo} lists files outside of its own folder; refused.", retryable=False)
        files = [file for file in listed if hub_cache.is_wanted(file.name)]
        names = {file.name for file in files}
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise FetchFailed(f"{self._repo} holds no MLX model (config.json and safetensors files).", retryable=False)
        if info.sha is None:
            raise FetchFailed("The Hub did not name the commit of the repository.", retryable=True)
        return info.sha, files

    def _download(self, commit: str, files: Sequence[RepoFile], missing: Sequence[RepoFile]) -> None:
        """Everything that is not here, then a check of what came."""
        from huggingface_hub import snapshot_download

        folder = hub_cache.storage_folder(self._repo) / "snapshots" / commit
        here = sum(file.size for file in files if (folder / file.name).exists())
        counter = _Counter(self._progress, here, sum(file.size for file in files))
        counter.arrived(0)
        bar: Any = functools.partial(_Bar, counter)
        snapshot_download(
            self._repo,
            # A commit, so that every file is of the same state of the repository.
            revision=commit,
            allow_patterns=[file.name for file in files],
            etag_timeout=self._timeout_s,
            tqdm_class=bar,
        )
        if hub_cache.drop_corrupt(folder, missing):
            raise FetchFailed("A file arrived corrupt (its sha256 is not the Hub's).", retryable=True, again=True)

    def _progress(self, done: int, total: int) -> None:
        text = f"fetching {self._repo}: {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        self._report.progress("fetching", done, total, text)

    def _retrying(self, action: Callable[[], T]) -> T:
        """What huggingface_hub does not try again itself, such as a 5xx on a file, is tried again here."""
        for attempt in range(_TRIES):
            try:
                return action()
            except Exception as error:
                failed = explain(error, self._repo)
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                if not failed.again or attempt == _TRIES - 1:
                    raise failed from error
                time.sleep(self._backoff_s * 2**attempt)
        raise AssertionError("unreachable")

    def _check_writable(self) -> None:
        storage = hub_cache.storage_folder(self._repo)
        try:
            storage.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=storage):
                pass
        except OSError as error:
            print(f"{storage}: {error}", file=sys.stderr)
            raise cache_not_writable() from error

    def _check_space(self, needed: int) -> None:
        """Up front: huggingface_hub only warns, and fails when the disk is full."""
        free = shutil.disk_usage(hub_cache.storage_folder(self._repo)).free
        if needed and needed + _SPARE_BYTES > free:
            message = f"{self._repo} needs {needed / 1e9:.1f} GB of disk space, {free / 1e9:.1f} GB are free."
            raise FetchFailed(message, retryable=True)


class _Counter:
    """Bytes so far, over all files and threads."""

    def __init__(self, progress: Callable[[int, int], None], here: int, total: int) -> None:
        self._progress = progress
        self._here = here
        self._total = total

    def arrived(self, count: int) -> None:
        self._progress(min(self._here + count, self._total), self._total)


class _Bar:
    """What huggingface_hub needs of a tqdm class; the bars that count bytes report to the counter."""

    def __init__(self, counter: _Counter, *, total: float | None = None, unit: str = "it", **_: Any) -> None:
        self._counter = counter
        self._counts_bytes = unit == "B"
        self._lock = threading.Lock()
        self.total = total
        self.n = 0
        self.format_dict: dict[str, Any] = {}

    def update(self, count: float | None = 1) -> None:
        with self._lock:
            self.n += int(count or 0)
        if self._counts_bytes:
            self._counter.arrived(self.n)

    def refresh(self) -> None: ...

    def close(self) -> None: ...

    def set_description(self, *_: Any, **__: Any) -> None: ...

    def set_description_str(self, *_: Any, **__: Any) -> None: ...

    def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> _Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...


def _bound_every_wait(timeout_s: float) -> None:
    """huggingface_hub 2.4 lists files without any timeout and sleeps for as long as Retry-After says."""
    import httpx2
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def before(request: httpx2.Request) -> None:
        given = request.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {name: given.get(name) or timeout_s for name in names}

    def after(response: httpx2.Response) -> None:
        wait = response.headers.get("retry-after", "")
        if wait.isdigit() and int(wait) > _LONGEST_WAIT_S:
            raise FetchFailed(f"The Hub asks to wait {wait} s before the next request.", retryable=True)

    def client() -> httpx2.Client:
        made = default_client_factory()
        made.event_hooks["request"].append(before)
        made.event_hooks["response"].append(after)
        return made

    set_client_factory(client)
    constants.HF_HUB_DOWNLOAD_TIMEOUT = timeout_s  # type: ignore[assignment]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server.models.fetch")
    parser.add_argument("source", metavar="REPO[@REVISION]")
    parser.add_argument("--offline", action="store_true", help="use only what is on this machine")
    parser.add_argument("--timeout", type=float, default=30, help="seconds of silence before a retry")
    parser.add_argument("--backoff", type=float, default=1, help="seconds before the first retry; doubles")
    parser.add_argument("--watch-stdin", action="store_true", help="exit when stdin closes")
    args = parser.parse_args()
    if args.watch_stdin:
        exit_with_parent(sys.stdin.buffer)
    repo, _, revision = args.source.partition("@")
    report = Report()
    try:
        folder = hub_cache.cached_folder(repo, revision or None)
        if folder is None and args.offline:
            raise FetchFailed(f"{repo} is not on this machine, and downloads are switched off.", retryable=False)
        if folder is None:
            _bound_every_wait(args.timeout)
            fetch = Fetch(repo, revision or None, report, timeout_s=args.timeout, backoff_s=args.backoff)
            folder = fetch.run()
    except Exception as error:
        failed = explain(error, repo)
        report.error(failed.message, retryable=failed.retryable)
        return 1
    report.folder(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
