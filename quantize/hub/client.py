"""Asking the Hub: what a repository holds at one commit, and a few bytes of its files. Every wait is bounded.

huggingface_hub is imported inside functions: it costs a quarter of a second at start.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from quantize.errors import HubError, SourceError
from quantize.hub import compat
from quantize.hub.cache import RepoFile, is_model_file
from quantize.hub.faults import explain
from quantize.names import checked_commit, checked_name, checked_path, checked_sha256, distinct_names
from quantize.printable import echo

if TYPE_CHECKING:
    import httpx2

_TRIES = 4
# The Hub may ask for a wait; a longer one is reported instead.
_LONGEST_WAIT_S = 60
# What a kill may lose, and the step of the progress.
_CHUNK_BYTES = 2**20

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Seconds without data before an attempt is given up, and before the first retry; the latter doubles."""

    timeout_s: float
    backoff_s: float


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository at one commit, so that every file is of the same state."""

    name: str
    commit: str
    files: Mapping[str, RepoFile]
    retry: RetryPolicy

    def url(self, file: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.name, file, revision=self.commit)

    def retrying(self, action: Callable[[], T]) -> T:
        return retrying(action, self.name, self.retry.backoff_s)


# The largest models have a thousand.
_MOST_FILES = 5000
_LARGEST = 2**53


def describe(repo: str, revision: str | None, retry: RetryPolicy) -> Repository:
    """The commit that `revision` points to now, and its files. Raises HubError."""
    return retrying(functools.partial(_describe, repo, revision, retry), repo, retry.backoff_s)


def _describe(repo: str, revision: str | None, retry: RetryPolicy) -> Repository:
    from huggingface_hub import HfApi

    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=retry.timeout_s)
    if info.sha is None:
        raise HubError("The Hub did not name the commit of the repository.", retryable=True)
    listed = [item.rfilename for item in info.siblings or []]
    if any(name.startswith("/") or ".." in name.split("/") or "\\" in name for name in listed):
        raise HubError(f"{repo} lists files outside of its own folder; refused.", retryable=False)
    if sum(map(is_model_file, listed)) > _MOST_FILES:
        raise HubError(f"{repo} lists more than {_MOST_FILES:,} files of a model; refused.", retryable=False)
    if not all(0 <= (item.size or 0) <= _LARGEST for item in info.siblings or []):
        raise HubError(f"{repo} lists a file of a size that no file can have; refused.", retryable=False)
    try:
        files = [
            RepoFile(item.rfilename, item.size or 0, checked_sha256(item.lfs.sha256) if item.lfs else None)
            for item in info.siblings or []
        ]
        # What is not fetched may have any name that stays inside.
        distinct_names(map(checked_path, filter(is_model_file, listed)))
        commit = checked_commit(info.sha)
    except SourceError as error:
        raise HubError(
            f"The Hub's description of {repo} is not to be trusted: {error.message}", retryable=False
        ) from None
    return Repository(repo, commit, {file.name: file for file in files}, retry)


def read_range(repository: Repository, file: str, start: int, stop: int) -> bytes:
    """Bytes start..stop of a file, or fewer where it ends. Raises HubError.

    No more is read, whatever is sent: `parse_safetensors_file_metadata` of huggingface_hub 2.4 would take a whole shard
    into memory from a proxy that ignores ranges, and gives no way to tell the size that the header implies.
    """
    return repository.retrying(functools.partial(_read_range, repository.url(file), start, stop))


def _read_range(url: str, start: int, stop: int) -> bytes:
    from huggingface_hub import get_session, hf_raise_for_status

    headers = {**compat.request_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers) as response:
        hf_raise_for_status(response)
        # A server without ranges sends the file from its start.
        skipped = 0 if response.status_code == 206 else start
        read = bytearray()
        for chunk in response.iter_bytes():
            read += chunk
            if len(read) >= skipped + stop - start:
                break
    return bytes(read[skipped : skipped + stop - start])


@contextlib.contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Turn whatever goes wrong into a HubError."""
    try:
        yield
    except (HubError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        # A panic of its native parts is no Exception.
        echo(f"{type(error).__name__}: {error}", err=True)
        raise explain(error, repo) from error


def retrying(action: Callable[[], T], repo: str, backoff_s: float) -> T:
    """`action`, retried where huggingface_hub itself does not, such as after a 5xx on a file.

    Raises:
        HubError: whatever went wrong, as a sentence.
    """
    for attempt in range(_TRIES - 1):
        try:
            with hub_errors(repo):
                return action()
        except HubError as error:
            if not error.again:
                raise
            time.sleep(backoff_s * 2**attempt)
    with hub_errors(repo):
        return action()


def _check_names(headers: Mapping[str, str]) -> None:
    """huggingface_hub names files in the cache after these headers, without a look at them (2.4). Raises HubError."""
    try:
        for header in ("x-linked-etag", "etag"):
            if etag := headers.get(header, "").removeprefix("W/").strip('"'):
                checked_name(etag)
        if (commit := headers.get("x-repo-commit")) is not None:
            checked_commit(commit)
    except SourceError as error:
        raise HubError(f"The answer is not the Hub's: {error.message}", retryable=False) from None


def bound_every_wait(timeout_s: float) -> None:
    """No request of huggingface_hub waits longer than `timeout_s` for data, nor as long as Retry-After may say."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    def before(request: httpx2.Request) -> None:
        given = request.extensions.get("timeout", {})
        names = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {name: given.get(name) or timeout_s for name in names}

    def after(response: httpx2.Response) -> None:
        wait = response.headers.get("retry-after", "")
        if wait.isdigit() and int(wait) > _LONGEST_WAIT_S:
            raise HubError(f"The Hub asks to wait {wait} s before the next request.", retryable=True)
        if response.request.method == "HEAD":
            _check_names(response.headers)

    def adapt(client: httpx2.Client) -> None:
        client.event_hooks["request"].append(before)
        client.event_hooks["response"].append(after)

    disable_progress_bars()
    compat.use_client(adapt, timeout_s=timeout_s, chunk_bytes=_CHUNK_BYTES)
