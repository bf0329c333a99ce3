"""What a forward pass costs on a chip: constants that were published, or measured by `configi doctor`. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """Reading n tokens of prompts takes `sweep_s` + n * `token_s`: one sweep over nearly all weights, and arithmetic.
    Below `cliff_tokens` the experts are not sorted, and a token costs `cliff_factor` times as much.

    A decode step of r rows takes `decode_s` * (1 + (r - 1) * `row_share`). `memory_bytes` is what the engine may use.
    """

    name: str
    sweep_s: float
    token_s: float
    decode_s: float
    row_share: float
    memory_bytes: int
    cliff_tokens: int = 64
    cliff_factor: float = 2.0
    # Reading or writing a file with its sha256, as one thread does both.
    disk_bytes_per_s: float = 1.5e9

    def prefill_s(self, tokens: int) -> float:
        factor = self.cliff_factor if tokens < self.cliff_tokens else 1.0
        return self.sweep_s + tokens * self.token_s * factor

    def decode_step_s(self, rows: int) -> float:
        return self.decode_s * (1 + (rows - 1) * self.row_share)

    def ideal_ttft_s(self, tokens: int, chunk: int = 2048) -> float:
        """Of a prompt alone, in chunks of `chunk`; its last token is the first decode step."""
        unread = tokens - 1
        chunks = [min(chunk, unread - start) for start in range(0, unread, chunk)]
        return sum(map(self.prefill_s, chunks)) + self.decode_s


# Gemma 4 26B-A4B at about 4 bits. W is 12 GB by the bandwidth; the rest of a token follows from published prefill
# speeds, a decode step from 50 tok/s on an M2 Pro by bandwidth, what rows add from 9 rows at 6.13x there. The M4 Max's
# `row_share` and `cliff_factor` are guesses. All are given memory enough: whether a model fits is asked elsewhere.
CHIPS = (
    Chip(name="M4 Max", sweep_s=0.022, token_s=0.000604, decode_s=0.0075, row_share=0.3, memory_bytes=48 * GB),
    Chip(name="M2 Pro", sweep_s=0.060, token_s=0.00362, decode_s=0.020, row_share=0.64, memory_bytes=24 * GB),
    Chip(name="M1", sweep_s=0.176, token_s=0.00541, decode_s=0.059, row_share=0.64, memory_bytes=24 * GB),
)


class _Doctor(msgspec.Struct):
    """What `configi doctor --json` measured on a Mac."""

    sweep_s: float
    token_s: float
    cliff_tokens: int
    cliff_factor: float
    recommended_bytes: int = 24 * GB
    chip: str = "this Mac"
    # None where there was no time for them.
    decode_s: float | None = None
    row_share: float | None = None


def measured(path: Path) -> Chip:
    """A chip of what `configi doctor --json` wrote. Raises OSError, and msgspec.MsgspecError where passes were not
    measured."""
    found = msgspec.json.decode(path.read_bytes(), type=_Doctor)
    return Chip(
        name=found.chip,
        sweep_s=found.sweep_s,
        token_s=found.token_s,
        cliff_tokens=found.cliff_tokens,
        cliff_factor=found.cliff_factor,
        decode_s=found.sweep_s / 3 if found.decode_s is None else found.decode_s,
        row_share=CHIPS[1].row_share if found.row_share is None else found.row_share,
        memory_bytes=found.recommended_bytes,
    )
