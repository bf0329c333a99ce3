"""Where a model's files are, and how they are obtained when they are missing: fetched or built. HTTP process."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from quantize.hub.cache import cached_folder, has_begun
from server.errors import ModelUnavailable
from server.models import worker
from server.models.built import build_arguments, built_folder, source_is_here, without_paths
from server.settings.types import ModelSettings, StorageSettings

log = logging.getLogger("configi.acquire")

_EMBEDDED = "embedded:"


@dataclass(frozen=True, slots=True)
class AcquireProgress:
    """How far the transfer or the build has come, in bytes; `text` is one line."""

    phase: Literal["fetching", "building"]
    done: int
    total: int | None
    text: str


class Acquirer:
    """`python` is the command that starts a worker's interpreter."""

    def __init__(self, storage: StorageSettings, python: Sequence[str] = (sys.executable, "-P")) -> None:
        self._storage = storage
        self._python = python

    def locate(self, model: ModelSettings) -> Path | None:
        """The folder of `model` if it is complete on this machine. Reads the disk, never the network."""
        if model.acquire == "local":
            return model.path if model.path is not None and (model.path / "config.json").is_file() else None
        fetched = self._fetched(model.fetch) if model.acquire != "build" and model.fetch is not None else None
        if fetched is not None or model.acquire == "fetch":
            return fetched
        return built_folder(model, self._storage.cache_dir)

    async def acquire(self, model: ModelSettings, progress: Callable[[AcquireProgress], None]) -> Path:
        """Fetch or build `model`. Cancelling ends it; what is complete by then is kept.

        Raises:
            ModelUnavailable: neither was possible; the message says why.
        """
        if model.acquire == "local":
            log.error("model %s: no config.json in %s", model.id, model.path)
            raise ModelUnavailable(f"The folder of the model '{model.id}' is missing or has no config.json.")
        source = model.build_from if model.acquire != "fetch" else None
        if not self._storage.allow_download:
            if source is None or not source_is_here(source):
                message = f"The model '{model.id}' is not on this machine, and storage.allow_download is false."
                raise ModelUnavailable(message)
            return await self._build(source, model, progress)
        if model.acquire == "build" or model.fetch is None:
            return await self._build(str(source), model, progress)
        if source is None:
            return await self._fetch(model.fetch, progress)
        return await self._fetch_or_build(model.fetch, source, model, progress)

    async def _fetch_or_build(
        self, fetch: str, source: str, model: ModelSettings, progress: Callable[[AcquireProgress], None]
    ) -> Path:
        arrived = 0

        def on_fetched(now: AcquireProgress) -> None:
            nonlocal arrived
            arrived = max(arrived, now.done)
            progress(now)

        try:
            return await self._fetch(fetch, on_fetched)
        except worker.WorkerFailed as fetch_failed:
            if fetch_failed.transient and (arrived or await asyncio.to_thread(self._has_begun, fetch)):
                # The next try continues from here: no reason to fetch a source that is many times larger.
                raise
            log.warning("%s cannot be fetched: %s; building from %s", fetch, fetch_failed.message, source)
            try:
                return await self._build(source, model, progress)
            except worker.WorkerFailed as error:
                if error.message == fetch_failed.message:
                    raise
                message = f"{fetch_failed.message} Building it from {source} failed as well: {error.message}"
                raise ModelUnavailable(without_paths(message, model, self._storage.cache_dir)) from error

    def _fetched(self, fetch: str) -> Path | None:
        if fetch.startswith(_EMBEDDED):
            from server.models.embedded import embedded_folder

            return embedded_folder(fetch.removeprefix(_EMBEDDED), self._storage.cache_dir)
        repo, _, revision = fetch.partition("@")
        return cached_folder(repo, revision or None)

    def _has_begun(self, fetch: str) -> bool:
        """Whether an earlier transfer broke off midway, which a try that met no Hub cannot tell."""
        return not fetch.startswith(_EMBEDDED) and has_begun(fetch.partition("@")[0])

    async def _fetch(self, fetch: str, progress: Callable[[AcquireProgress], None]) -> Path:
        if fetch.startswith(_EMBEDDED):
            arguments = ["server.models.embedded", fetch.removeprefix(_EMBEDDED), str(self._storage.cache_dir)]
        else:
            arguments = ["server.models.fetch", fetch, "--timeout", str(self._storage.hub_timeout_s)]

        def on_line(line: worker.ReportLine) -> None:
            progress(AcquireProgress("fetching", line.done, line.total, line.text))

        return await worker.run([*self._python, "-m", *arguments], on_line)

    async def _build(self, source: str, model: ModelSettings, progress: Callable[[AcquireProgress], None]) -> Path:
        shown = functools.partial(without_paths, model=model, cache_dir=self._storage.cache_dir)
        doing = shown(f"building from {source}")

        def on_line(line: worker.ReportLine) -> None:
            share = f", {line.done / line.total:.0%}" if line.total else ""
            progress(AcquireProgress("building", line.done, line.total, f"{doing}{share}: {shown(line.text)}"))

        progress(AcquireProgress("building", 0, None, doing))
        try:
            return await worker.run([*self._python, *build_arguments(source, model, self._storage)], on_line)
        except worker.WorkerFailed as error:
            raise worker.WorkerFailed(shown(error.message), transient=error.transient) from None
