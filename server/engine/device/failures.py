"""What an exception of MLX means for the requests, and for the process. Pure; engine process.

MLX raises RuntimeError for everything, so the words decide. The samples in the tests are what issue threads of MLX and
of the servers on top of it quote; none was provoked here, where there is no GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.engine_client.protocol import FailureKind

# A command buffer failed. MLX raises that at some later call, and may have returned wrong numbers meanwhile; the driver
# may refuse all that follows ("SubmissionsIgnored"). Nothing that such a process holds can be trusted.
_LOST = ("[METAL]", "Command buffer", "kIOGPU", "kIOAccel")
# No memory, or no more buffers: said by the driver of a command buffer, or by an allocator before anything ran.
_MEMORY = ("Insufficient Memory", "OutOfMemory", "[malloc", "[metal::malloc]", "allocate", "out of memory")

OUT_OF_MEMORY = "The engine ran out of memory; try a shorter prompt or fewer requests at once."
_LOST_OUT_OF_MEMORY = (
    "The GPU ran out of memory, and the engine starts again; try a shorter prompt or fewer requests at once."
)
_LOST_OTHERWISE = "The GPU failed, and the engine starts again; send the request once more."
_INTERNAL = "The engine failed on this request; the next one will be served."


@dataclass(frozen=True, slots=True)
class Failure:
    """`message` is fit for users. `lost`: the device is; the process must end, and nothing of it be kept."""

    kind: FailureKind
    message: str
    lost: bool = False


def explain(error: BaseException) -> Failure:
    words = str(error)
    memory = isinstance(error, MemoryError) or _any_of(_MEMORY, words)
    lost = _any_of(_LOST, words)
    if memory:
        return Failure("memory", _LOST_OUT_OF_MEMORY if lost else OUT_OF_MEMORY, lost)
    return Failure("internal", _LOST_OTHERWISE if lost else _INTERNAL, lost)


def is_of_the_device(error: BaseException) -> bool:
    """Whether it is about memory or the device, so that neither model nor request is at fault."""
    failure = explain(error)
    return failure.lost or failure.kind == "memory"


def _any_of(samples: tuple[str, ...], words: str) -> bool:
    return any(sample in words for sample in samples)
