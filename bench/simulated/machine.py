"""One simulated Mac: the engine as `configi serve` sets it up by default, and its own loop, on a scripted device."""

from __future__ import annotations

import contextlib
import gc
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from bench.simulated.chips import Chip
from bench.simulated.clients import Client, Clients
from bench.simulated.clock import virtual_time
from bench.simulated.device import SCALE, VOCABULARY, WEIGHT_BYTES, Device, ScriptedModel, WorkingAhead, in_place
from server.engine import process
from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.prefixes import disk_tier, disk_work, persistence
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together
from server.engine_client.protocol import Load
from server.settings.types import Settings

SETTINGS = Settings()
STALL_TARGET_S = SETTINGS.engine.decode_stall_target_ms / 1000
# What the engine knows of files by their size, in bytes.
_SIZES: tuple[tuple[Any, str], ...] = (
    (persistence, "_SMALL_BYTES"),
    (disk_tier, "_ASSUMED_BYTES_PER_S"),
    (disk_work, "_MOST_WAITING_BYTES"),
)


class Machine:
    def __init__(self, device: Device, folder: Path) -> None:
        self.device = device
        model = ScriptedModel(device)
        options = Load(
            model_dir="",
            max_concurrent=SETTINGS.engine.max_concurrent,
            prefill_step_tokens=SETTINGS.engine.prefill_step_tokens,
            decode_stall_target_s=STALL_TARGET_S,
            cache_limit=SETTINGS.cache.memory_limit // SCALE,
            disk_limit=SETTINGS.cache.disk_limit // SCALE,
            disk_hourly_limit=SETTINGS.cache.disk_hourly_limit // SCALE,
        )
        admission = Admission(device.chip.memory_bytes // SCALE, WEIGHT_BYTES, measure(model))
        disk = DiskTier(folder, "simulated", options.disk_limit, options.disk_hourly_limit)
        self._engine = Engine(model, VOCABULARY, options, admission, disk, Together(), WorkingAhead())

    def serve(self, clients: Sequence[Client]) -> None:
        """Until all have ended."""
        process._loop(cast("Any", Clients(self.device.clock, clients)), self._engine)

    def shut_down(self) -> None:
        """Write what an engine writes when it is unloaded."""
        self._engine.close(process._LAST_WRITES_S)


@contextlib.contextmanager
def machine(chip: Chip) -> Iterator[Machine]:
    # The engine looks at the memory of the process: that of the machine before must be gone.
    gc.collect()
    with virtual_time() as clock, tempfile.TemporaryDirectory(prefix="configi-simulated-") as folder:
        device = Device(chip, clock)
        with in_place(device), _scaled():
            yield Machine(device, Path(folder))


@contextlib.contextmanager
def _scaled() -> Iterator[None]:
    """Meanwhile these sizes are as small as the caches."""
    before = [getattr(module, name) for module, name in _SIZES]
    try:
        for (module, name), size in zip(_SIZES, before, strict=True):
            setattr(module, name, size / SCALE)
        yield
    finally:
        for (module, name), size in zip(_SIZES, before, strict=True):
            setattr(module, name, size)
