"""A repository of the Hub as a checkpoint: headers by ranged requests, shards one ahead of their use.

The revision is resolved to a commit once, at the start; every file is of that commit.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quantize.errors import HubError, SourceError
from quantize.folder.model_files import weight_files
from quantize.folder.safetensors_format import (
    INDEX,
    ITEM_SIZES,
    LENGTH_SIZE,
    Header,
    data_start,
    parse_header,
    parse_index,
)
from quantize.hub import cache as hub_cache
from quantize.hub.cache import RepoFile
from quantize.hub.client import RetryPolicy, bound_every_wait, describe, hub_errors, read_range
from quantize.hub.transfer import CorruptFile, blob_path, in_background, into_cache, is_intact, missing_bytes, transfer
from quantize.names import checked_name
from quantize.printable import echo
from quantize.source.checkpoint import (
    Checkpoint,
    HubOptions,
    Shard,
    ShardReader,
    SourceTensor,
    is_auxiliary,
    parse_config,
)
from quantize.source.folder import CARRIERS, FolderCheckpoint, Raw, SafetensorsShard, source_tensors

# Nearly every header is shorter.
_FIRST_READ = 100_000
_HEADERS_AT_ONCE = 8

T = TypeVar("T")


def hub_checkpoint(source: str, options: HubOptions) -> Checkpoint:
    """`source` is owner/name or owner/name@revision; a complete copy in the Hub's cache is used when the Hub cannot be.

    Raises:
        SourceError: the Hub refuses or cannot be reached, or the repository is not a model.
    """
    repo, _, revision = source.partition("@")
    if options.offline:
        refused = HubError(f"{repo} is not on this machine, and downloads are switched off.", retryable=False)
    else:
        bound_every_wait(options.timeout_s)
        try:
            return HubCheckpoint(source, options)
        except HubError as error:
            refused = error
    folder = hub_cache.cached_folder(repo, revision or None)
    if folder is None:
        raise refused
    echo(f"{refused.message} The copy on this machine is used.", err=True)
    return FolderCheckpoint(folder, label=source)


class HubCheckpoint:
    def __init__(self, source: str, options: HubOptions) -> None:
        repo, _, revision = source.partition("@")
        self._options = options
        self._awaited = ""
        self._coming: dict[str, Future[Path]] = {}
        self._repository = describe(repo, revision or None, RetryPolicy(options.timeout_s, options.backoff_s))
        self.label = source
        self.repository: str | None = repo
        self.revision: str | None = self._repository.commit
        self.identity = f"{repo}@{self._repository.commit}"
        if "config.json" not in self._repository.files:
            raise SourceError(f"{repo} has no config.json, so it is not a model.")
        self.config: Mapping[str, Any] = parse_config(self._small("config.json"))
        index = parse_index(self._small(INDEX)) if INDEX in self._repository.files else None
        headers = self._headers(weight_files((name for name in self._repository.files if "/" not in name), index))
        self._read_headers = headers
        self.tensors: Mapping[str, SourceTensor] = source_tensors(headers, index, self.config)
        self.shards: Sequence[Shard] = [Shard(name, header.size) for name, header in headers.items()]
        if options.keep:
            hub_cache.remember_revision(repo, revision or None, self._repository.commit)

    @property
    def scratch_bytes(self) -> int:
        missing = [self._missing_bytes(shard.name) for shard in self.shards]
        if self._options.keep:
            return sum(missing)
        return max(map(sum, pairwise(missing)), default=sum(missing))

    def auxiliary_files(self) -> Mapping[str, bytes]:
        return {name: self._small(name) for name in sorted(self._repository.files) if is_auxiliary(name)}

    @contextlib.contextmanager
    def open(self, shard: str, prefetch: str | None = None) -> Iterator[ShardReader]:
        """A shard in `scratch` is removed after it was read without an error."""
        path = self._wait(shard)
        if prefetch is not None:
            self._begin(prefetch)
        with SafetensorsShard(path, shard, self._whole) as reader:
            yield reader
        if path == self._scratch_path(shard):
            shutil.rmtree(path.parent)

    def _whole(self, tensor: SourceTensor) -> Raw:
        """All of a tensor, from the file if it is here, else by its range."""
        if (path := self._cached(tensor.shard)) is not None:
            with SafetensorsShard(path, tensor.shard, self._whole) as shard:
                return shard.whole(tensor)
        header = self._read_headers[tensor.shard]
        entry = header.entries[tensor.name]
        read = read_range(self._repository, tensor.shard, header.data + entry.begin, header.data + entry.end)
        if len(read) != entry.nbytes:
            raise SourceError(f"The Hub sent {len(read)} of the {entry.nbytes} bytes of {tensor.name}.")
        return np.frombuffer(read, CARRIERS[ITEM_SIZES[entry.dtype]])

    # ---- headers and small files

    def _headers(self, names: Sequence[str]) -> Mapping[str, Header]:
        with ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
            return dict(zip(names, pool.map(self._header, names), strict=True))

    def _header(self, name: str) -> Header:
        text = read_range(self._repository, name, 0, _FIRST_READ)
        data = data_start(name, text[:LENGTH_SIZE])
        if len(text) < data:
            text += read_range(self._repository, name, len(text), data)
        header = parse_header(name, text[LENGTH_SIZE:data], data)
        if (size := self._repository.files[name].size) != header.size:
            raise SourceError(f"{name} has {size} bytes on the Hub; its header says {header.size}: it is cut short.")
        return header

    def _small(self, name: str) -> bytes:
        with hub_errors(self._repository.name):
            return into_cache(self._repository, self._repository.files[name], lambda _: None).read_bytes()

    # ---- shards

    def _wait(self, shard: str) -> Path:
        coming = self._coming.pop(shard, None)
        if coming is None or not coming.done():
            self._options.on_wait(shard, 0, self._repository.files[shard].size)
        self._awaited = shard
        try:
            if coming is not None:
                try:
                    return coming.result()
                except CorruptFile:
                    raise
                except HubError:
                    # What prevented it, such as a full disk, may be gone by now.
                    pass
            return self._fetch(shard)
        finally:
            self._awaited = ""

    def _begin(self, shard: str) -> None:
        if shard not in self._coming:
            self._coming[shard] = in_background(functools.partial(self._fetch, shard))

    def _fetch(self, shard: str) -> Path:
        """The shard's file, complete and checked against the Hub's sha256."""
        file = self._repository.files[shard]
        with hub_errors(self._repository.name):
            scratch, cached = self._scratch_path(shard), self._cached(shard)
            if cached is not None and is_intact(cached, file):
                return cached
            if scratch is None:
                hub_cache.sweep_orphans(self._repository.name, self._repository.files.values())
                return into_cache(self._repository, file, self._arrived(file))
            if not scratch.exists():
                scratch.parent.mkdir(parents=True, exist_ok=True)
                transfer(self._repository, file, scratch, self._arrived(file))
            return scratch

    def _cached(self, shard: str) -> Path | None:
        path = hub_cache.snapshot_folder(self._repository.name, self._repository.commit) / checked_name(shard)
        return path if path.is_file() and path.stat().st_size == self._repository.files[shard].size else None

    def _scratch_path(self, shard: str) -> Path | None:
        """In a folder named after the content, so that another build never takes the wrong one."""
        if self._options.keep or self._options.scratch is None:
            return None
        content = self._repository.files[shard].sha256 or self._repository.commit
        return self._options.scratch / checked_name(content) / checked_name(shard)

    def _missing_bytes(self, shard: str) -> int:
        file = self._repository.files[shard]
        target = self._scratch_path(shard) or blob_path(self._repository.name, file)
        return 0 if self._cached(shard) else missing_bytes(file, target)

    def _arrived(self, file: RepoFile) -> Callable[[int], None]:
        def arrived(here: int) -> None:
            if self._awaited == file.name:
                self._options.on_wait(file.name, here, file.size)

        return arrived
