"""The device: a scripted model whose passes take a chip's time, and meters for what the engine does around them.

Bytes are real but small: a KV cache of Gemma 4 26B-A4B at a 512th of its size. Its 25 sliding layers are one here, and
its five others are one, since nothing in the engine depends on their number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache

from bench.simulated.chips import GB, Chip
from bench.simulated.clock import Clock

SCALE = 512
VOCABULARY = 512
WINDOW = 1024
WEIGHT_BYTES = 12 * GB // SCALE
# Elements of keys (and as many of values) for each token, in two bytes each: 25 * 8 KB and 5 * 4 KB, scaled.
_SLIDING, _GLOBAL = 100, 10
# What makes an array of keys or values out of others, in MLX.
_COPYING = ("contiguous", "concatenate", "zeros", "pad", "roll")


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: when the device worked on it, and on what, (rows, tokens of each)."""

    start: float
    end: float
    rows: int
    tokens: int


class Device:
    """A queue of passes, worked on in order while the host goes on."""

    def __init__(self, chip: Chip, clock: Clock) -> None:
        self.chip = chip
        self.clock = clock
        self.passes: list[Pass] = []
        self.copied = 0
        self.written = 0
        self.read = 0
        # The last pass was submitted and not waited for: the next wait is for what was before it.
        self._ahead = False

    def submit(self, rows: int, tokens: int) -> None:
        seconds = self.chip.decode_step_s(rows) if tokens == 1 else self.chip.prefill_s(rows * tokens)
        start = max(self.clock.now, self.passes[-1].end if self.passes else 0.0)
        self.passes.append(Pass(start, start + seconds, rows, tokens))
        self._ahead = False

    def go_ahead(self) -> None:
        self._ahead = True

    def wait(self) -> None:
        """For all passes; right after an asynchronous evaluation, as mlx-lm's decoding does, for those before it."""
        due = self.passes[:-1] if self._ahead else self.passes
        self._ahead = False
        if due:
            self.clock.wait_until(due[-1].end)

    def transfer(self, nbytes: int) -> None:
        """From or to the disk; in the background nobody waits for it."""
        if not self.clock.in_background:
            self.clock.sleep(nbytes / self.chip.disk_bytes_per_s)


class ScriptedModel(nn.Module):  # type: ignore[misc]
    """Draws token 0, always; it costs time and fills its caches."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.weights = mx.zeros((WEIGHT_BYTES,), mx.uint8)
        self._device = device

    def make_cache(self) -> list[Any]:
        return [RotatingKVCache(WINDOW), KVCache()]

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        rows, count = tokens.shape
        self._device.submit(rows, count)
        for layer, width in zip(cache or (), (_SLIDING, _GLOBAL), strict=False):
            filling = mx.broadcast_to(mx.array(0, mx.float16), (rows, 1, count, width))
            layer.update_and_fetch(filling, filling)
        return mx.zeros((rows, count, VOCABULARY))


@contextlib.contextmanager
def in_place(device: Device) -> Iterator[None]:
    """Meanwhile evaluating waits for `device`, and what is copied or goes to the disk is counted."""
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        replaced.append((owner, name, original))
        setattr(owner, name, made(original))

    replace(mx, "eval", lambda original: _then(original, device.wait))
    replace(mx, "async_eval", lambda original: _then(original, device.go_ahead))
    for name in _COPYING:
        replace(mx, name, lambda original: _counting(original, device))
    replace(mx, "save_safetensors", lambda original: _saving(original, device))
    replace(mx, "load", lambda original: _loading(original, device))
    try:
        yield
    finally:
        for owner, name, original in reversed(replaced):
            setattr(owner, name, original)


def _then(original: Any, after: Callable[[], None]) -> Any:
    def evaluate(*args: Any) -> None:
        original(*args)
        after()

    return evaluate


def _counting(original: Any, device: Device) -> Any:
    def making(*args: Any, **others: Any) -> Any:
        made = original(*args, **others)
        if made.ndim == 4 and made.dtype == mx.float16:
            device.copied += made.nbytes * SCALE
        return made

    return making


def _saving(original: Any, device: Device) -> Any:
    def save(path: Any, arrays: Any, *args: Any, **others: Any) -> None:
        original(path, arrays, *args, **others)
        size = _size(arrays)
        device.written += size
        device.transfer(size)

    return save


def _loading(original: Any, device: Device) -> Any:
    def load(*args: Any, **others: Any) -> Any:
        loaded = original(*args, **others)
        size = _size(loaded[0] if isinstance(loaded, tuple) else loaded)
        device.read += size
        device.transfer(size)
        return loaded

    return load


def _size(arrays: Any) -> int:
    return SCALE * sum(int(array.nbytes) for array in arrays.values())
