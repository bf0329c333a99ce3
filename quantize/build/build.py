"""Carrying out a plan: rows are read, quantized and written in blocks, by a few threads, and finished tensors noted.

Nothing is ever held that grows with the model. What is read, where it goes and what it becomes is all in the plan, so
the threads may work in any order, and a build that was cut off leaves nothing to decide for the one that goes on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import mlx.core as mx

from quantize.build.affine import quantize_rows
from quantize.build.blocks import Block, cut
from quantize.build.card import write_card
from quantize.build.description import manifest_of, tools, write_configs
from quantize.build.journal import Journal
from quantize.build.output import Output, written
from quantize.build.output_files import OutputFiles, bytes_of
from quantize.errors import OutputError, SourceError
from quantize.folder.finite import all_finite
from quantize.folder.manifest import File, write_manifest
from quantize.folder.verify import check
from quantize.plan.memory import Share, share
from quantize.plan.plan import Plan
from quantize.progress import Progress, silent
from quantize.source.checkpoint import Checkpoint, ShardReader

DEFAULT_MEMORY_LIMIT = 3_000_000_000
# Between two calls for everything that is written to reach the disk: what a power cut may cost.
_SYNC_INTERVAL_S = 15
_HASH_CHUNK = 2**22


def build(
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    *,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress = silent,
) -> Path:
    """Make the model of `plan` in `folder`, or go on making it, or wait for the process that does.

    Raises:
        QuantizeError: one sentence; what is done is kept, and the same call goes on from there.
    """
    memory = share(memory_limit)
    output = Output(folder)
    if output.is_built(plan):
        return output.folder
    # What cannot end well leaves nothing behind.
    companions = _companions(checkpoint)
    output.check_space(plan, checkpoint.scratch_bytes)
    with output.locked(progress), written("Writing the model"):
        if not output.is_built(plan):
            _build(checkpoint, plan, companions, output, memory, progress)
        output.sweep()
    return output.folder


def _build(
    checkpoint: Checkpoint,
    plan: Plan,
    companions: Mapping[str, bytes],
    output: Output,
    memory: Share,
    progress: Progress,
) -> None:
    output.begin(plan)
    journal = Journal(output.journal, json.dumps([plan.fingerprint, tools()]))
    try:
        output.keep([file.name for file in plan.files] if journal.done else [])
        for name, content in companions.items():
            (output.model / name).write_bytes(content)
        with OutputFiles(output.model, plan.files) as files:
            output.sync_folders()
            _Filling(checkpoint, plan, files, journal, progress).run(memory)
    finally:
        journal.close()
    write_configs(plan, output.model)
    write_card(plan, output.model)
    made = _hashed(output.model, progress)
    write_manifest(output.model, manifest_of(plan, made))
    if problems := check(output.model):
        raise OutputError(f"What was built is not whole: {problems[0]}")
    output.publish()


class _Filling:
    """Fills the output files. Threads only read, quantize and write; what is finished is told by this one alone."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Plan, files: OutputFiles, journal: Journal, progress: Progress
    ) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._files = files
        self._journal = journal
        self._progress = progress
        self._done_bytes = sum(plan.work[item][0].nbytes for item in journal.done)

    def run(self, memory: Share) -> None:
        shards: dict[str, list[int]] = {}
        for item, (tensor, _) in enumerate(self._plan.work):
            if item not in self._journal.done:
                shards.setdefault(tensor.shard, []).append(item)
        self._block_bytes = memory.block_bytes
        mx.set_cache_limit(memory.cache_bytes)
        workers = ThreadPoolExecutor(memory.threads, "quantize", initializer=_OWN.begin)
        syncing = _Syncing(self._files, self._journal)
        try:
            self._say(f"shards to read: {len(shards)}")
            for shard, then in itertools.pairwise([*shards, None]):
                assert shard is not None
                with self._checkpoint.open(shard, then) as reader:
                    self._shard(shards[shard], reader, workers, syncing)
        finally:
            workers.shutdown(cancel_futures=True)
            syncing.close()

    def _shard(self, items: Sequence[int], reader: ShardReader, workers: ThreadPoolExecutor, syncing: _Syncing) -> None:
        jobs: dict[Future[int], int] = {}
        missing = dict.fromkeys(items, 0)
        for item in items:
            for block in cut(*self._plan.work[item], self._block_bytes):
                jobs[workers.submit(_make, block, reader, self._files)] = item
                missing[item] += 1
        try:
            for job in as_completed(jobs):
                item = jobs.pop(job)
                self._done_bytes += job.result()
                missing[item] -= 1
                if missing[item] == 0:
                    self._journal.add(item)
                    syncing.now_and_then()
                self._say(self._plan.work[item][0].name)
        except BaseException:
            # No thread reads on once the shard is closed.
            for job in jobs:
                job.cancel()
            for job in jobs:
                if not job.cancelled():
                    job.exception()
            raise

    def _say(self, text: str) -> None:
        self._progress("building", self._done_bytes, self._plan.work_bytes, text)


class _Syncing:
    """Sees to it that what is done reaches the disk before long, beside the work."""

    def __init__(self, files: OutputFiles, journal: Journal) -> None:
        self._files = files
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, "sync")
        self._running: Future[None] | None = None
        self._covers = 0
        self._last = time.monotonic()

    def now_and_then(self) -> None:
        if self._running is not None and self._running.done():
            self._running.result()
            self._journal.synced(self._covers)
            self._running, self._last = None, time.monotonic()
        if self._running is None and time.monotonic() - self._last > _SYNC_INTERVAL_S:
            self._covers = len(self._journal.done)
            self._running = self._thread.submit(self._files.sync)

    def close(self) -> None:
        self._thread.shutdown()


class _Own(threading.local):
    """A stream for each thread, always on the CPU.

    One stream is one thread of MLX's CPU backend. A few of them keep up with any disk, and the bytes do not depend on
    whether there is a GPU.
    """

    def begin(self) -> None:
        self.stream = mx.new_stream(mx.cpu)


_OWN = _Own()


def _make(block: Block, reader: ShardReader, files: OutputFiles) -> int:
    """One block from the source into the output files. Returns its bytes in the source."""
    target = block.target
    with mx.stream(_OWN.stream):
        rows = reader.rows(block.source, block.start, block.stop)
        if target.width is None:
            arrays = {target.name: rows}
        else:
            made = quantize_rows(rows, target.width)
            arrays = {f"{target.path}.{suffix}": array for suffix, array in made.items()}
        mx.eval(arrays)
        # Quantizing would make numbers of what is none.
        if target.width is not None and not all_finite(bytes_of(rows), target.dtype):
            raise SourceError(f"{block.source.name} holds values that are not finite.")
        files.write(arrays, block.at)
    return block.nbytes


def _companions(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    companions = checkpoint.companions()
    if not companions.keys() & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        raise SourceError("The source holds no tokenizer (tokenizer.json).")
    return companions


def _hashed(folder: Path, progress: Progress) -> dict[str, File]:
    """Size and sha256 of every file, read back from where they are written."""
    paths = sorted(folder.iterdir())
    total = sum(path.stat().st_size for path in paths)
    done = 0

    def hash_one(path: Path) -> File:
        nonlocal done
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_HASH_CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress("checking", done, total, "sha256 of the files")
        return File(digest.hexdigest(), path.stat().st_size)

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip((path.name for path in paths), threads.map(hash_one, paths), strict=True))
