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
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from quantize import hub_cache
from quantize.errors import HubError
from quantize.hub_cache import RepoFile
from quantize.hub_client import Patience, Repository, bound_every_wait, describe
from quantize.hub_faults import cache_not_writable, explain
from quantize.hub_transfer import SPARE_BYTES
from quantize.worker import JsonLines, exit_with_parent


class Fetch:
    """One repository at one commit."""

    def __init__(self, repo: str, revision: str | None, report: JsonLines, patience: Patience) -> None:
        self._repo = repo
        self._revision = revision
        self._report = report
        self._patience = patience

    def run(self) -> Path:
        """The folder of the complete model. Raises HubError."""
        repository = describe(self._repo, self._revision, self._patience)
        commit, files = repository.commit, self._wanted(repository)
        folder = hub_cache.storage_folder(self._repo) / "snapshots" / commit
        self._check_writable()
        hub_cache.drop_cut(folder, files)
        hub_cache.sweep_orphans(self._repo)
        missing = [file for file in files if not (folder / file.name).exists()]
        self._check_space(sum(file.size for file in missing))
        repository.retrying(functools.partial(self._download, commit, files, missing))
        hub_cache.remember_revision(self._repo, self._revision, commit)
        if hub_cache.cached_folder(self._repo, commit) is None:
            raise HubError(f"The files of {self._repo} are damaged or incomplete on the Hub.", retryable=False)
        return folder

    def _wanted(self, repository: Repository) -> list[RepoFile]:
        """The files to fetch."""
        files = [file for file in repository.files.values() if hub_cache.is_wanted(file.name)]
        names = {file.name for file in files}
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise HubError(f"{self._repo} holds no MLX model (config.json and safetensors files).", retryable=False)
        return files

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
            etag_timeout=self._patience.timeout_s,
            tqdm_class=bar,
        )
        if hub_cache.drop_corrupt(folder, missing):
            raise HubError("A file arrived corrupt (its sha256 is not the Hub's).", retryable=True, again=True)

    def _progress(self, done: int, total: int) -> None:
        text = f"fetching {self._repo}: {done / 1e9:.2f} of {total / 1e9:.2f} GB"
        self._report("fetching", done, total, text)

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
        if needed and needed + SPARE_BYTES > free:
            message = f"{self._repo} needs {needed / 1e9:.1f} GB of disk space, {free / 1e9:.1f} GB are free."
            raise HubError(message, retryable=True)


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
    report = JsonLines(sys.stdout)
    try:
        folder = hub_cache.cached_folder(repo, revision or None)
        if folder is None and args.offline:
            raise HubError(f"{repo} is not on this machine, and downloads are switched off.", retryable=False)
        if folder is None:
            bound_every_wait(args.timeout)
            folder = Fetch(repo, revision or None, report, Patience(args.timeout, args.backoff)).run()
    except Exception as error:
        failed = explain(error, repo)
        report.error(failed.message, retryable=failed.retryable)
        return 1
    report.folder(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
