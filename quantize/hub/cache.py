"""The Hub's cache on this disk, shared with every other tool that uses it: what is in it, and whether it is complete.

No network, and huggingface_hub is imported inside functions: it costs a quarter of a second at start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from quantize.errors import SourceError
from quantize.folder.model_files import TOKENIZERS, is_chat_template, lost_shard, variants, weight_files
from quantize.folder.safetensors_format import INDEX, parse_index, read_header
from quantize.hub import compat
from quantize.names import checked_commit, checked_name, checked_path

# What a model needs, data only: no Python, no pickles, no formats of other runtimes.
_MODEL_FILES = (
    "model*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "*.tiktoken",
    "tiktoken.model",
)  # fmt: skip


def is_model_file(name: str) -> bool:
    """Whether a model needs the file of that path in a repository."""
    return is_chat_template(name) or ("/" not in name and any(fnmatchcase(name, pattern) for pattern in _MODEL_FILES))


def model_files(files: Iterable[RepoFile]) -> list[RepoFile]:
    """Those of a repository that a model needs."""
    needed = [file for file in files if is_model_file(file.name)]
    again = variants(file.name for file in needed)
    return [file for file in needed if file.name not in again]


def cached_folder(repo: str, revision: str | None) -> Path | None:
    """The complete snapshot of `repo`, or None when a file is missing or cut short."""
    try:
        if not compat.storage_folder(repo).is_dir():
            return None
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(repo, "config.json", revision=revision)
        folder = Path(config).parent if isinstance(config, str) else None
        return folder if folder and _is_complete(folder) and _has_all_listed(repo, folder) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SourceError):
        # An unreadable file, or JSON of another shape: a damaged cache does not count, and fetching repairs it.
        return None


def has_begun(repo: str) -> bool:
    """Whether weights of `repo` are here, of one file or a part of one."""
    try:
        storage = compat.storage_folder(repo)
        parts = any(path.stat().st_size for path in storage.glob("blobs/*.part"))
        return parts or any(storage.glob("snapshots/*/model*.safetensors"))
    except (OSError, ValueError):
        return False


def snapshot_folder(repo: str, commit: str) -> Path:
    """Where the files of `repo` at `commit` are, or will be."""
    return compat.storage_folder(repo) / "snapshots" / checked_commit(commit)


def remember_revision(repo: str, revision: str | None, commit: str, kind: str = "model") -> None:
    """Write refs/REVISION as the Hub's tools do, so that what was fetched is found."""
    if revision != commit:
        ref = compat.storage_folder(repo, kind) / "refs" / checked_path(revision or "main")
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)


@dataclass(frozen=True, slots=True)
class RepoFile:
    """A file as the Hub describes it; small ones have no sha256."""

    name: str
    size: int
    sha256: str | None


def drop_cut(folder: Path, files: Iterable[RepoFile]) -> None:
    """Remove files of the snapshot whose size is not the repository's, so that they are fetched again."""
    for file in files:
        path = folder / checked_path(file.name)
        if path.is_file() and path.stat().st_size != file.size:
            # A snapshot holds links to blobs beside it; what a link to elsewhere leads to is not the cache's.
            if (blob := path.resolve()).is_relative_to(folder.parent.parent.resolve()):
                blob.unlink()
            path.unlink(missing_ok=True)


def sweep_orphans(repo: str, resumable: Collection[RepoFile] = ()) -> None:
    """Remove partial files of processes that are gone, except those of `resumable` files.

    Their locks are free; those of live downloads are not.
    """
    from filelock import FileLock, Timeout

    kept = {f"{file.sha256}.part" for file in resumable}
    blobs = compat.storage_folder(repo) / "blobs"
    for partial in (path for pattern in ("*.incomplete", "*.part") for path in blobs.glob(pattern)):
        lock = compat.blob_lock(partial)
        with contextlib.suppress(Timeout, OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock, timeout=0):
                if partial.name not in kept:
                    partial.unlink(missing_ok=True)


def _is_complete(folder: Path) -> bool:
    """A config, a tokenizer, and every shard, complete."""
    names = {path.name for path in folder.iterdir()}
    if "config.json" not in names or not names & TOKENIZERS:
        return False
    index = parse_index((folder / INDEX).read_bytes()) if INDEX in names else None
    headers = {name: read_header(folder / checked_name(name)) for name in weight_files(names, index)}
    return lost_shard(headers, index) is None


def _has_all_listed(repo: str, folder: Path) -> bool:
    """Against the repository's own list of files, which the Hub's tools keep; older caches have none."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = get_cached_repo_tree(repo, revision=folder.name)
    except CachedRepoTreeNotFoundError:
        return True
    needed = model_files(RepoFile(file.path, file.size, None) for file in files)
    paths = {folder / checked_path(file.name): file.size for file in needed}
    return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
