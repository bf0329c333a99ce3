"""The first passes of a process, so that no request waits for kernels to be compiled and pages to be touched.

Engine process. On Metal a prompt that is long enough for the kernel that mixtures of experts sort their tokens for, and
steps that draw at random, for two sequences, which the rehearsal does not. Elsewhere nothing is compiled, and a large
model would take minutes for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import mlx.nn as nn

from server.engine.batch import Batch
from server.engine.decoder import Newcomer
from server.engine.device.device import Device
from server.engine.prefill import Prefill, read_together
from server.engine.rehearsal import Together
from server.engine_client.protocol import Generate, Sampling

# Chunks, each read as a whole; the last one's size is what later ones have.
_CHUNKS = (32, 256)
_STEPS = 2
# Whoever waits for the model need not wait longer than this for what only makes the first request faster.
_MOST_S = 10.0


def warm_up(
    model: nn.Module, vocab_size: int, together: Together, device: Device, clock: Callable[[], float] = time.monotonic
) -> int:
    """The tokens that it has read. Raises what the device fails at."""
    if not device.is_metal:
        return 0
    start, read = clock(), 0
    newcomers = []
    for id, size in enumerate(_CHUNKS):
        if read and clock() - start > _MOST_S:
            break
        request = _request(id, size + 1, vocab_size)
        prefill = Prefill(model, request)
        prefill.start(None, 0)
        read_together(model, [(prefill, size)])
        newcomers.append(Newcomer(request, prefill.layers))
        read += size
    batch = Batch(model, vocab_size, merged=together.decode)
    batch.add(newcomers)
    for _ in range(_STEPS):
        batch.step([], [])
    device.let_go()
    return read


def _request(id: int, length: int, vocab_size: int) -> Generate:
    sampling = Sampling(seed=id, temperature=1, top_p=0.95, top_k=40, min_p=0.01)
    prompt = [token % vocab_size for token in range(1, length + 1)]
    return Generate(id=id, prompt=prompt, max_tokens=_STEPS + 2, stop_tokens=[], sampling=sampling)
