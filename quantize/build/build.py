"""Executing a plan: a few threads read, quantize and write blocks of rows; finished tensors go into the journal.

Memory use does not grow with the model. What is read, where it goes and how it is quantized is all in the plan, so the
threads may work in any order, and an interrupted build can be resumed by another process.
"""

from __future__ import annotations

import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import mlx.core as mx

from quantize.build.affine import quantize_rows
from quantize.build.blocks import Block, cut
from quantize.build.card import write_card
from quantize.build.description import manifest_of, tools, write_configs
from quantize.build.journal import Journal
from quantize.build.output_files import OutputFiles, bytes_of
from quantize.build.output_folder import OutputFolder, write_errors
from quantize.calibrate.calibration import CalibratedWeights
from quantize.calibrate.results import Results
from quantize.errors import OutputError, SourceError
from quantize.files import write_all
from quantize.folder.finite import all_finite, is_float
from quantize.folder.hashing import sha256_of
from quantize.folder.manifest import File, write_manifest
from quantize.folder.model_files import TOKENIZERS
from quantize.folder.verify import check
from quantize.plan.memory import MemoryPlan, plan_memory
from quantize.plan.plan import Plan
from quantize.progress import Progress, silent
from quantize.source.checkpoint import Checkpoint, ShardReader

DEFAULT_MEMORY_LIMIT = 3_000_000_000
# Between two syncs: the work that a power cut may cost.
_SYNC_INTERVAL_S = 15

# Solves the plan's matrices for a source with these auxiliary files, keeping its work in the folder.
Calibrate = Callable[[Plan, Mapping[str, bytes], Path, Progress], CalibratedWeights]


def build(
    checkpoint: Checkpoint,
    plan: Plan,
    folder: Path,
    *,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    progress: Progress = silent,
    calibrate: Calibrate | None = None,
    calibration_bytes: Callable[[Mapping[str, bytes]], int] = lambda auxiliary: 0,
) -> Path:
    """Build the model of `plan` in `folder`, or resume building it, or wait for the process that does.

    `calibration_bytes`: what `calibrate` needs of the disk, for a source with these auxiliary files.

    Raises:
        QuantizeError: one sentence; finished work is kept, and the same call resumes from there.
    """
    memory = plan_memory(memory_limit)
    output = OutputFolder(folder)
    if output.is_built(plan):
        return output.folder
    # Before anything is written: a source without a tokenizer leaves nothing behind.
    auxiliary_files = _auxiliary_files(checkpoint)
    output.check_space(plan, checkpoint.scratch_bytes + calibration_bytes(auxiliary_files))
    with output.locked(progress), write_errors("Writing the model"):
        if not output.is_built(plan):
            calibrated = calibrate(plan, auxiliary_files, output.calibration, progress) if calibrate else None
            _build(checkpoint, plan, auxiliary_files, output, memory, progress, calibrated)
        output.sweep()
    return output.folder


def _build(
    checkpoint: Checkpoint,
    plan: Plan,
    auxiliary_files: Mapping[str, bytes],
    output: OutputFolder,
    memory: MemoryPlan,
    progress: Progress,
    calibrated: CalibratedWeights | None,
) -> None:
    output.begin(plan)
    journal = Journal(output.journal, json.dumps([plan.fingerprint, tools()]))
    try:
        output.keep([file.name for file in plan.files] if journal.done else [])
        write_all(output.model, auxiliary_files)
        with OutputFiles(output.model, plan.files) as files:
            output.sync_folders()
            _TensorWriter(checkpoint, plan, files, journal, progress, calibrated).run(memory)
    finally:
        journal.close()
    write_configs(plan, output.model)
    write_card(plan, output.model, calibrated)
    hashes = _hashed(output.model, progress)
    write_manifest(output.model, manifest_of(plan, hashes, calibrated))
    if problems := check(output.model):
        raise OutputError(f"The model that was built is damaged: {problems[0]}")
    output.publish()


class _TensorWriter:
    """Fills the output files. Pool threads read, quantize and write; the main one keeps journal and progress."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        files: OutputFiles,
        journal: Journal,
        progress: Progress,
        calibrated: CalibratedWeights | None,
    ) -> None:
        self._solved = calibrated.figures if calibrated else {}
        self._results = calibrated.results if calibrated else None
        self._checkpoint = checkpoint
        self._plan = plan
        self._files = files
        self._journal = journal
        self._progress = progress
        self._done_bytes = sum(plan.work[item][0].nbytes for item in journal.done)

    def run(self, memory: MemoryPlan) -> None:
        shards: dict[str, list[int]] = {}
        for item, (tensor, _) in enumerate(self._plan.work):
            if item not in self._journal.done:
                shards.setdefault(tensor.shard, []).append(item)
        self._block_bytes = memory.block_bytes
        mx.set_cache_limit(memory.cache_bytes)
        workers = ThreadPoolExecutor(memory.threads, "quantize", initializer=_THREAD.open_stream)
        sync = _PeriodicSync(self._files, self._journal)
        try:
            self._report(f"shards to read: {len(shards)}")
            for shard, following in itertools.pairwise([*shards, None]):
                assert shard is not None
                with self._checkpoint.open(shard, following) as reader:
                    self._shard(shards[shard], reader, workers, sync)
        finally:
            workers.shutdown(cancel_futures=True)
            sync.close()

    def _shard(
        self, items: Sequence[int], reader: ShardReader, workers: ThreadPoolExecutor, sync: _PeriodicSync
    ) -> None:
        jobs: dict[Future[int], int] = {}
        missing = dict.fromkeys(items, 0)
        for item in items:
            for block in cut(*self._plan.work[item], self._block_bytes):
                jobs[self._submit(workers, block, reader)] = item
                missing[item] += 1
        try:
            for job in as_completed(jobs):
                item = jobs.pop(job)
                self._done_bytes += job.result()
                missing[item] -= 1
                if missing[item] == 0:
                    self._journal.add(item)
                    sync.sync_if_due()
                self._report(self._plan.work[item][0].name)
        except BaseException:
            # No thread may still read when the shard is closed.
            for job in jobs:
                job.cancel()
            for job in jobs:
                if not job.cancelled():
                    job.exception()
            raise

    def _submit(self, workers: ThreadPoolExecutor, block: Block, reader: ShardReader) -> Future[int]:
        if self._results is not None and block.output.path in self._solved:
            return workers.submit(_copy_block, block, self._results, self._files)
        return workers.submit(_build_block, block, reader, self._files)

    def _report(self, text: str) -> None:
        self._progress("building", self._done_bytes, self._plan.work_bytes, text)


class _PeriodicSync:
    """Syncs finished work to the disk every few seconds, in a thread of its own."""

    def __init__(self, files: OutputFiles, journal: Journal) -> None:
        self._files = files
        self._journal = journal
        self._thread = ThreadPoolExecutor(1, "sync")
        self._running: Future[None] | None = None
        self._covers = 0
        self._last = time.monotonic()

    def sync_if_due(self) -> None:
        if self._running is not None and self._running.done():
            self._running.result()
            self._journal.synced(self._covers)
            self._running, self._last = None, time.monotonic()
        if self._running is None and time.monotonic() - self._last > _SYNC_INTERVAL_S:
            self._covers = len(self._journal.done)
            self._running = self._thread.submit(self._files.sync)

    def close(self) -> None:
        self._thread.shutdown()


class _ThreadStream(threading.local):
    """One CPU stream per thread.

    A stream is one thread of MLX's CPU backend. A few of them keep up with any disk, and the bytes do not depend on
    whether there is a GPU.
    """

    def open_stream(self) -> None:
        self.stream = mx.new_stream(mx.cpu)


_THREAD = _ThreadStream()


def _build_block(block: Block, reader: ShardReader, files: OutputFiles) -> int:
    """Move one block from the source into the output files. Returns its size in the source, in bytes."""
    output = block.output
    with mx.stream(_THREAD.stream):
        rows = block.rows(reader)
        if output.spec is None:
            arrays = {output.name: rows}
        else:
            quantized = quantize_rows(rows, output.spec)
            arrays = {f"{output.path}.{suffix}": array for suffix, array in quantized.items()}
        mx.eval(arrays)
        # Quantizing would turn NaN and infinity into ordinary numbers, and a kept one spoils every answer.
        if is_float(output.dtype) and not all_finite(bytes_of(rows), output.dtype):
            raise SourceError(f"{block.source.name} holds values that are not finite.")
        files.write(arrays, block.at)
    return block.nbytes


def _copy_block(block: Block, results: Results, files: OutputFiles) -> int:
    """As `_build_block`, of what a calibration has solved."""
    assert block.output.layer is not None
    with mx.stream(_THREAD.stream):
        count = block.stop - block.start
        files.write(results.rows(block.output.layer, block.output.path, block.at, block.at + count), block.at)
    return block.nbytes


def _auxiliary_files(checkpoint: Checkpoint) -> Mapping[str, bytes]:
    auxiliary_files = checkpoint.auxiliary_files()
    if not auxiliary_files.keys() & TOKENIZERS:
        raise SourceError("The source holds no tokenizer (tokenizer.json).")
    return auxiliary_files


def _hashed(folder: Path, progress: Progress) -> dict[str, File]:
    """Size and sha256 of every file, by its path in the folder, read back from the disk."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    total = sum(path.stat().st_size for path in paths)
    done, lock = 0, threading.Lock()

    def count(read: int) -> None:
        nonlocal done
        # Of several threads no one may tell an earlier state after a later one.
        with lock:
            done += read
            progress("checking", done, total, "sha256 of the files")

    def hash_one(path: Path) -> File:
        return File(sha256_of(path, count), path.stat().st_size)

    names = [path.relative_to(folder).as_posix() for path in paths]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return dict(zip(names, threads.map(hash_one, paths), strict=True))
