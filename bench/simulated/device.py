"""The device: a scripted model whose passes take a chip's time, and meters for what the engine does around them.

Bytes are real but small: a KV cache of Gemma 4 26B-A4B at a 512th of its size. The pass over a prompt takes time when
its layers are evaluated, each a thirtieth; a decode step as a whole, when its evaluation begins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache

from bench.simulated.chips import GB, Chip
from bench.simulated.clock import Clock
from server.engine import kv
from server.engine.device.device import Device as OfEngine

SCALE = 512
VOCABULARY = 512
WINDOW = 1024
WEIGHT_BYTES = 12 * GB // SCALE
# One layer in six looks at everything.
_LAYERS, _GLOBAL_EVERY = 30, 6
# Elements of keys (and as many of values) for each token and layer, in two bytes each: 8 KB and 4 KB, scaled.
_SLIDING, _GLOBAL = 4, 2
# What makes an array of keys or values out of others, in MLX.
_COPYING = ("contiguous", "concatenate", "zeros", "pad", "roll")


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass: when it was begun, and on what, (rows, tokens of each)."""

    start: float
    rows: int
    tokens: int


class Device:
    """A queue of passes, worked on in order while the host goes on."""

    def __init__(self, chip: Chip, clock: Clock) -> None:
        self.chip = chip
        self.clock = clock
        self.passes: list[Pass] = []
        # When what was submitted is done, in order; and the layers that nobody has asked for, with what each takes.
        self._ends: list[float] = []
        self._unevaluated: list[tuple[Any, float]] = []
        self.copied = 0
        self.written = 0
        self.read = 0
        # Of the decode step whose graph was made and not evaluated: its rows, and the ids of its caches.
        self._next_rows, self._next_layers = 0, set[int]()
        # The last pass was submitted and not waited for: the next wait is for what was before it.
        self._ahead = False

    def submit(self, rows: int, tokens: int, layers: Sequence[Any]) -> None:
        """A pass that fills `layers`."""
        self._ahead = False
        if tokens == 1:
            self._next_rows, self._next_layers = rows, set(map(id, layers))
        else:
            self._begin(rows, tokens)
            seconds = self.chip.prefill_s(rows * tokens) / max(1, len(layers))
            # Of a pass over several prompts other caches are made, which are evaluated at once.
            self._unevaluated += [(layer if rows == 1 else None, seconds) for layer in layers]

    def evaluate(self, layers: Sequence[Any]) -> None:
        """Work on those of them that passes have filled."""
        asked = {id(layer) for layer in layers}
        due = [(layer, seconds) for layer, seconds in self._unevaluated if layer is None or id(layer) in asked]
        # A prompt's only token.
        if self._next_layers & asked:
            self._decode()
        if due:
            self._work(sum(seconds for _, seconds in due))
            self._unevaluated = [left for left in self._unevaluated if left not in due]

    def _begin(self, rows: int, tokens: int) -> None:
        self.passes.append(Pass(max(self.clock.now, self._free_at), rows, tokens))

    @property
    def _free_at(self) -> float:
        return self._ends[-1] if self._ends else 0.0

    def _work(self, seconds: float) -> None:
        self._ends.append(max(self.clock.now, self._free_at) + seconds)
        self._ahead = False

    def _decode(self) -> None:
        if self._next_rows:
            self._begin(self._next_rows, 1)
            self._work(self.chip.decode_step_s(self._next_rows))
            self._next_rows, self._next_layers = 0, set()

    def go_ahead(self) -> None:
        self._decode()
        self._ahead = True

    def wait(self) -> None:
        """For all that was submitted; right after an asynchronous evaluation, as decoding does, for what was before."""
        due = self._ends[:-1] if self._ahead else self._ends
        self._ahead = False
        if due:
            self.clock.wait_until(due[-1])

    def transfer(self, nbytes: int) -> None:
        """From or to the disk; in the background nobody waits for it."""
        if not self.clock.in_background:
            self.clock.sleep(nbytes / self.chip.disk_bytes_per_s)


class WorkingAhead(OfEngine):
    """To the engine it is a device that is given passes before it is done with those before."""

    works_ahead = True


class ScriptedModel(nn.Module):  # type: ignore[misc]
    """Draws token 0, always; it costs time and fills its caches."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.weights = mx.zeros((WEIGHT_BYTES,), mx.uint8)
        self._device = device

    def make_cache(self) -> list[Any]:
        return [KVCache() if _is_global(index) else RotatingKVCache(WINDOW) for index in range(_LAYERS)]

    def __call__(self, tokens: mx.array, cache: list[Any] | None = None) -> mx.array:
        rows, count = tokens.shape
        self._device.submit(rows, count, cache or ())
        for index, layer in enumerate(cache or ()):
            width = _GLOBAL if _is_global(index) else _SLIDING
            filling = mx.broadcast_to(mx.array(0, mx.float16), (rows, 1, count, width))
            layer.update_and_fetch(filling, filling)
        return mx.zeros((rows, count, VOCABULARY))


def _is_global(index: int) -> bool:
    return index % _GLOBAL_EVERY == _GLOBAL_EVERY - 1


@contextlib.contextmanager
def in_place(device: Device) -> Iterator[None]:
    """Meanwhile evaluating waits for `device`, and what is copied or goes to the disk is counted."""
    replaced: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, made: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        replaced.append((owner, name, original))
        setattr(owner, name, made(original))

    replace(kv, "evaluate", lambda original: _before(original, device.evaluate))
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


def _before(original: Any, first: Callable[[Sequence[Any]], None]) -> Any:
    def evaluate(layers: Sequence[Any]) -> None:
        first([layer for layer in layers if layer is not None])
        original(layers)

    return evaluate


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
