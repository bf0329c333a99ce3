"""A data set of the Hub: what files it has at one commit, and single ones of them, in the Hub's cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantize.errors import HubError
from quantize.hub import compat
from quantize.hub.cache import remember_revision
from quantize.hub.client import bound_every_wait, hub_errors, retrying
from quantize.names import checked_commit, checked_path

_KIND = "dataset"
_TIMEOUT_S, _BACKOFF_S = 30, 1
# Questions are a few megabytes; nothing larger is fetched by mistake.
_LARGEST = 200_000_000


@dataclass(frozen=True, slots=True)
class DataSet:
    """`file` gives the path of one of `names` on this disk. Raises HubError."""

    names: Sequence[str]
    file: Callable[[str], Path]


def open_dataset(source: str, *, offline: bool = False) -> DataSet:
    """`source` is owner/name or owner/name@revision. Raises HubError."""
    repo, _, revision = source.partition("@")
    return _cached(repo, revision or None) if offline else _described(repo, revision or None)


def _described(repo: str, revision: str | None) -> DataSet:
    from huggingface_hub import HfApi, hf_hub_download

    bound_every_wait(_TIMEOUT_S)
    ask = functools.partial(HfApi().dataset_info, repo, revision=revision, files_metadata=True, timeout=_TIMEOUT_S)
    info = retrying(ask, repo, _BACKOFF_S)
    commit = checked_commit(info.sha)
    remember_revision(repo, revision, commit, _KIND)
    sizes = {item.rfilename: item.size or 0 for item in info.siblings or []}

    def file(name: str) -> Path:
        with hub_errors(repo):
            if sizes[checked_path(name)] > _LARGEST:
                raise HubError(f"{name} of {repo} is larger than any questions are.", retryable=False)
        fetch = functools.partial(
            hf_hub_download, repo, name, repo_type=_KIND, revision=commit, etag_timeout=_TIMEOUT_S
        )
        return Path(retrying(fetch, repo, _BACKOFF_S))

    return DataSet(list(sizes), file)


def _cached(repo: str, revision: str | None) -> DataSet:
    """What was fetched earlier."""
    with hub_errors(repo):
        storage = compat.storage_folder(repo, _KIND)
        ref = storage / "refs" / checked_path(revision or "main")
        folder = storage / "snapshots" / checked_path(ref.read_text() if ref.is_file() else revision or "main")
        if not folder.is_dir():
            raise HubError(f"{repo} is not on this machine, and downloads are switched off.", retryable=False)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return DataSet(names, lambda name: folder / checked_path(name))
