"""Never worse than rounding: candidates judged on tokens that no solver saw, against the true output.

The true output of a held-back token is y = W xf + r, full precision throughout. What is kept of n tokens of one kind of
text is enough for the exact error of any candidate, whatever n, without differences of large numbers.
With D = W - candidate:

    sum |y - candidate xq|^2 = tr(D H D^T) + 2 tr(D M^T) + energy,   H = Xq^T Xq,   M = (Y - Xq W^T)^T Xq
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from quantize.forward.products import product

ROUNDING = "rounding"


@dataclass(frozen=True, slots=True)
class HeldBack:
    """hessian: (in, in); miss: M (out, in); energy: sum |y - W xq|^2; output: sum |y|^2; float32."""

    hessian: mx.array
    miss: mx.array
    energy: float
    output: float
    tokens: int


def hold_back(
    weight: mx.array, inputs: mx.array, full: mx.array | None = None, stream: mx.array | None = None
) -> HeldBack:
    """weight: W (out, in); inputs: Xq (n, in); full: Xf (n, in), None where equal; stream: R (n, out) or None."""
    weight, quantized = weight.astype(mx.float32), inputs.astype(mx.float32)
    gap = mx.zeros_like(quantized) if full is None else full.astype(mx.float32) - quantized
    miss = product(gap, weight.T)
    if stream is not None:
        miss = miss + stream.astype(mx.float32)
    output = product(quantized, weight.T) + miss
    return HeldBack(
        product(quantized.T, quantized),
        product(miss.T, quantized),
        float(mx.square(miss).sum()),
        float(mx.square(output).sum()),
        inputs.shape[0],
    )


def merge_held_back(first: HeldBack, second: HeldBack) -> HeldBack:
    """Of the tokens of both; of one kind of text."""
    return HeldBack(
        first.hessian + second.hessian,
        first.miss + second.miss,
        first.energy + second.energy,
        first.output + second.output,
        first.tokens + second.tokens,
    )


def output_error(weight: mx.array, candidate: mx.array, held: HeldBack) -> float:
    """sum |y - candidate xq|^2 / sum |y|^2. weight, candidate: (out, in) float32."""
    gap = weight - candidate
    error = float(((product(gap, held.hessian) + 2 * held.miss) * gap).sum()) + held.energy
    return max(error, 0.0) / held.output if held.output > 0 else 0.0


def judge(
    weight: mx.array, candidates: Mapping[str, mx.array], kinds: Mapping[str, HeldBack]
) -> dict[str, dict[str, float]]:
    """kind of text -> candidate -> output error; kinds without tokens are left out."""
    return {
        kind: {name: output_error(weight, candidate, held) for name, candidate in candidates.items()}
        for kind, held in kinds.items()
        if held.tokens > 0
    }


def ratio(errors: Mapping[str, Mapping[str, float]], name: str) -> float:
    """The error of `name` over that of rounding, the mean of the kinds. 1.0 where nothing was judged."""
    shares = [_share(of[name], of[ROUNDING]) for of in errors.values()]
    return sum(shares) / len(shares) if shares else 1.0


def choose(errors: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> str:
    """The best by the mean of the kinds, of those that are worse than rounding on no kind. `names` decide ties."""
    allowed = [name for name in names if all(of[name] <= of[ROUNDING] for of in errors.values())]
    return min(allowed, key=lambda name: ratio(errors, name))


def _share(error: float, rounding: float) -> float:
    if rounding > 0:
        return error / rounding
    return 1.0 if error == 0 else float("inf")
