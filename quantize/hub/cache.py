"""The Hub's cache on this disk, shared with every other tool that uses it: what is in it, whole or not.

No network, and huggingface_hub is imported inside functions: it costs a quarter of a second at start.
"""

from __future__ import annotations

import contextlib
import json
import re
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from quantize.errors import SourceError
from quantize.folder.hashing import sha256_of
from quantize.folder.safetensors_format import read_header

# What a model needs: data only. Python, pickles and the formats of other runtimes never come in.
_WANTED = ("model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_model_file(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _WANTED)


def cache_folder() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def storage_folder(repo: str) -> Path:
    """Where the Hub's tools keep `repo`: blobs/, snapshots/COMMIT/, refs/REVISION."""
    return cache_folder() / f"models--{repo.replace('/', '--')}"


def cached_folder(repo: str, revision: str | None) -> Path | None:
    """The complete snapshot of `repo`, or None when a file is missing or cut short."""
    storage = storage_folder(repo)
    try:
        commit = _commit(storage, revision or "main")
        if commit is None:
            return None
        folder = storage / "snapshots" / commit
        return folder if _is_complete(folder) and _has_all_listed(repo, commit, folder) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        # An unreadable file, or JSON of another shape: a damaged cache is no cache, and fetching repairs it.
        return None


def remember_revision(repo: str, revision: str | None, commit: str) -> None:
    """Write refs/REVISION as the Hub's tools do, so that `cached_folder` finds what was fetched."""
    if revision == commit:
        return
    ref = storage_folder(repo) / "refs" / (revision or "main")
    ref.parent.mkdir(parents=True, exist_ok=True)
    staged = ref.with_name(f".{uuid.uuid4().hex}")
    staged.write_text(commit)
    staged.replace(ref)


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file as the Hub describes it; small ones have no sha256."""

    name: str
    size: int
    sha256: str | None


def drop_cut(folder: Path, files: Sequence[RepoFile]) -> None:
    """Remove files of the snapshot whose size is not the repository's, so that they are fetched again."""
    for file in files:
        path = folder / file.name
        if path.is_file() and path.stat().st_size != file.size:
            _remove(path)


def drop_corrupt(folder: Path, files: Sequence[RepoFile]) -> bool:
    """Remove files whose sha256 is not the repository's; whether there were any. A flipped bit would load silently."""
    corrupt = [folder / file.name for file in files if file.sha256 and sha256_of(folder / file.name) != file.sha256]
    for path in corrupt:
        _remove(path)
    return bool(corrupt)


def _remove(path: Path) -> None:
    """A snapshot holds links; the content is elsewhere."""
    path.resolve().unlink()
    path.unlink(missing_ok=True)


def sweep_orphans(repo: str, wanted: Collection[RepoFile] = ()) -> None:
    """Remove partial files of processes that are gone, but those that a transfer of `wanted` files goes on with.

    Their locks are free; those of live downloads are not.
    """
    from filelock import FileLock, Timeout

    locks = cache_folder() / ".locks" / storage_folder(repo).name
    blobs = storage_folder(repo) / "blobs"
    goes_on = {f"{file.sha256}.part" for file in wanted}
    for partial in (path for pattern in ("*.incomplete", "*.part") for path in blobs.glob(pattern)):
        if partial.name in goes_on:
            continue
        lock = locks / f"{partial.name.split('.')[0]}.lock"
        with contextlib.suppress(Timeout, OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock, timeout=0):
                partial.unlink(missing_ok=True)


def _commit(storage: Path, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    ref = storage / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


def _is_complete(folder: Path) -> bool:
    """A config, a tokenizer, and every shard whole."""
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    return all(_is_whole(folder / name) for name in _shards(folder))


def _shards(folder: Path) -> Iterable[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    shards = json.loads(index.read_text())["weight_map"].values()
    return sorted({Path(str(name)).name for name in shards})


def _is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    try:
        return read_header(path).size > 0
    except SourceError:
        return False


def _has_all_listed(repo: str, commit: str, folder: Path) -> bool:
    """Against the repository's own list of files, which the Hub's tools keep; older caches have none."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = get_cached_repo_tree(repo, revision=commit)
    except CachedRepoTreeNotFoundError:
        return True
    sizes = {file.path: file.size for file in files if is_model_file(file.path)}
    return all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in sizes.items())
