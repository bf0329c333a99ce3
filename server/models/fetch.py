"""Fetches a ready MLX model from the Hub into the Hub's own cache, so that its files are shared with other tools.

A process of its own (`python -m server.models.fetch REPO[@REVISION]`): it can be killed at any moment, and every byte
that has arrived by then is kept. It reports as `server.models.worker` describes.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from quantize.errors import HubError
from quantize.hub import cache as hub_cache
from quantize.hub import compat
from quantize.hub.cache import RepoFile
from quantize.hub.client import Repository, RetryPolicy, bound_every_wait, describe, hub_errors
from quantize.hub.faults import explain
from quantize.hub.transfer import SPARE_BYTES, blob_path, in_background, into_cache, missing_bytes
from quantize.names import checked_path
from quantize.worker import JsonLines, exit_with_parent

_AT_ONCE = 4


class Fetch:
    """One repository at one commit."""

    def __init__(self, repo: str, revision: str | None, report: JsonLines, retry: RetryPolicy) -> None:
        self._repo = repo
        self._revision = revision
        self._report = report
        self._retry = retry

    def run(self) -> Path:
        """The folder of the complete model. Raises HubError."""
        repository = describe(self._repo, self._revision, self._retry)
        files = self._model_files(repository)
        storage = compat.storage_folder(self._repo)
        folder = hub_cache.snapshot_folder(self._repo, repository.commit)
        with hub_errors(self._repo):
            storage.mkdir(parents=True, exist_ok=True)
            hub_cache.drop_cut(folder, files)
            hub_cache.sweep_orphans(self._repo, files)
            missing = [file for file in files if not (folder / checked_path(file.name)).exists()]
            self._check_space(storage, sum(missing_bytes(file, blob_path(self._repo, file)) for file in missing))
            repository.retrying(functools.partial(self._download_small, repository.commit, files))
            large = [file for file in missing if file.sha256 is not None]
            self._download_large(repository, large, sum(file.size for file in files))
            hub_cache.remember_revision(self._repo, self._revision, repository.commit)
        if hub_cache.cached_folder(self._repo, repository.commit) is None:
            raise HubError(f"The files of {self._repo} are damaged or incomplete on the Hub.", retryable=False)
        return folder

    def _model_files(self, repository: Repository) -> list[RepoFile]:
        files = hub_cache.model_files(repository.files.values())
        names = {file.name for file in files}
        if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
            raise HubError(f"{self._repo} has no MLX model (config.json and safetensors files).", retryable=False)
        return files

    def _download_small(self, commit: str, files: Sequence[RepoFile]) -> None:
        """With the list of the repository's files, from which a later call knows that the cache is complete."""
        from huggingface_hub import snapshot_download

        small = [file.name for file in files if file.sha256 is None]
        snapshot_download(self._repo, revision=commit, allow_patterns=small, etag_timeout=self._retry.timeout_s)

    def _download_large(self, repository: Repository, files: Sequence[RepoFile], total: int) -> None:
        """Each is checked when it has arrived; a kill loses none of their bytes."""
        # From the start with what an earlier call left: else that would seem to arrive now, and the rate be a dream.
        arrived = {file.name: file.size - missing_bytes(file, blob_path(self._repo, file)) for file in files}
        present = total - sum(file.size for file in files)
        slots = threading.BoundedSemaphore(_AT_ONCE)

        def report(name: str, count: int) -> None:
            arrived[name] = count
            done = present + sum(arrived.values())
            text = f"fetching {self._repo}: {done / 1e9:.2f} of {total / 1e9:.2f} GB"
            self._report("fetching", done, total, text)

        def fetch(file: RepoFile) -> None:
            with slots:
                into_cache(repository, file, functools.partial(report, file.name))

        for transfer in [in_background(functools.partial(fetch, file)) for file in files]:
            transfer.result()

    def _check_space(self, storage: Path, needed: int) -> None:
        """Before the first byte: huggingface_hub only warns, and fails when the disk is full."""
        free = shutil.disk_usage(storage).free
        if needed and needed + SPARE_BYTES > free:
            message = f"{self._repo} needs {needed / 1e9:.1f} GB of disk space, {free / 1e9:.1f} GB is free."
            raise HubError(message, retryable=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server.models.fetch")
    parser.add_argument("source", metavar="REPO[@REVISION]")
    parser.add_argument("--offline", action="store_true", help="use only what is on this machine")
    parser.add_argument("--timeout", type=float, default=30, help="seconds without data before a retry")
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
            folder = Fetch(repo, revision or None, report, RetryPolicy(args.timeout, args.backoff)).run()
    except Exception as error:
        failed = explain(error, repo)
        report.error(failed.message, retryable=failed.retryable)
        return 1
    report.folder(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
