"""A rehearsal before a model counts as loaded: that it answers, and what it can do for several sequences at once.

A few tokens go through the very code that requests go through. What raises there would have failed every request; what
answers differently in company would have failed none and been wrong, so that is a list, which the slow tests hold
against every architecture of mlx-lm. Runs in the engine process.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from quantize.errors import first_line
from server.engine.batch import Batch
from server.engine.decoder import Newcomer
from server.engine.device.failures import is_of_the_device
from server.engine.loading import LoadError
from server.engine.prefill import Prefill, read_together
from server.engine_client.protocol import Generate, Sampling

log = logging.getLogger("configi.engine")

# mlx-lm 0.32.2, modules of `mlx_lm.models`. These compute positions or blocks for the batch as a whole, or take a mask
# of the batch for one of the heads when there are as many of both.
_WRONG_IN_A_BATCH = {"afm7", "gemma2", "longcat_flash_ngram", "minimax_m3_vl", "phi3small"}
# And these take the padding behind a shorter prompt into their recurrent state, or into what they convolve.
_WRONG_WITH_PADDING = {
    "baichuan_m1", "bailing_moe_linear", "jamba", "mamba", "nemotron_h", "olmo_hybrid", "recurrent_gemma", "rwkv7",
}  # fmt: skip

# Of different lengths, so that a batch needs padding.
_LENGTHS = (5, 3, 4)
_ANSWER = 3


@dataclass(frozen=True, slots=True)
class Together:
    """What several sequences can have in one forward pass: the prefill of their prompts, and decoding."""

    prefill: bool = True
    decode: bool = True


def rehearse(model: nn.Module, vocab_size: int) -> Together:
    """What the model can do for several sequences at once.

    Raises:
        LoadError: it cannot answer even a single one.
        Exception: the device failed, or is out of memory.
    """
    modules = {type(module).__module__.rpartition(".")[2] for module in model.modules()}
    decode = not modules & _WRONG_IN_A_BATCH
    together = Together(prefill=decode and not modules & _WRONG_WITH_PADDING, decode=decode)
    error = _failure(model, vocab_size, together)
    if error is not None and together.decode:
        log.info("decoding in a batch failed: %s", first_line(error))
        together = Together(prefill=False, decode=False)
        error = _failure(model, vocab_size, together)
    if error is not None:
        raise LoadError(f"The model cannot answer: {first_line(error)}") from error
    _check_logits(model, vocab_size)
    return together


def _failure(model: nn.Module, vocab_size: int, together: Together) -> Exception | None:
    """What is wrong with the model, if it cannot answer so. What the device fails at is not its fault, and raised."""
    try:
        _answer(model, vocab_size, together)
    # MLX and the architectures raise whatever they come upon.
    except Exception as error:
        if is_of_the_device(error):
            raise
        return error
    return None


def _answer(model: nn.Module, vocab_size: int, together: Together) -> None:
    """Read prompts, the last one by itself, and decode; each joins those before it."""
    requests = [_request(id, length, vocab_size) for id, length in enumerate(_LENGTHS)]
    prefills = [Prefill(model, request) for request in requests]
    for prefill in prefills:
        prefill.start(None, 0)
    parts = [(prefill, prefill.remaining) for prefill in prefills]
    groups = [parts[:-1], parts[-1:]] if together.prefill else [[part] for part in parts]
    for group in groups:
        read_together(model, group)
    batch = Batch(model, vocab_size, merged=together.decode)
    for request, prefill in zip(requests, prefills, strict=True):
        batch.add([Newcomer(request, prefill.layers)])
        batch.step([], [])
    while len(batch):
        batch.step([], [])


def _request(id: int, length: int, vocab_size: int) -> Generate:
    prompt = [(7 * id + token) % vocab_size for token in range(1, length + 1)]
    sampling = Sampling(seed=0, temperature=0)
    return Generate(id=id, prompt=prompt, max_tokens=_ANSWER, stop_tokens=[], sampling=sampling)


def _check_logits(model: nn.Module, vocab_size: int) -> None:
    """A single NaN or +infinity makes every probability NaN."""
    tokens = mx.array([_request(0, _LENGTHS[0], vocab_size).prompt])
    logits = model(tokens, cache=make_prompt_cache(model))[:, -1].astype(mx.float32)
    if not mx.isfinite(mx.logsumexp(logits)).item():
        raise LoadError("The model's weights do not give numbers: its logits are NaN or infinite.")
