"""Never worse than rounding: candidates judged on tokens that no solver saw, against the true output.

The true output of a held-back token is y = W xf + r, full precision throughout, and what W misses of it on the inputs
that quantized layers leave is m = y - W xq. With D = W - candidate the error of a candidate is

    sum |m + D xq|^2 = tr(D H D^T) + 2 tr(D M^T) + sum |m|^2,   H = Xq^T Xq,   M = (Y - Xq W^T)^T Xq

The left side costs less while there are few tokens, as an expert has; the right side keeps of many tokens what is
enough for the exact error, whatever their number, without differences of large numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from quantize.forward.products import product

ROUNDING = "rounding"


@dataclass(frozen=True, slots=True)
class HeldTokens:
    """inputs: Xq (n, in); miss: Y - Xq W^T (n, out); gains: (out,) or None; output: sum |y|^2; float32."""

    inputs: mx.array
    miss: mx.array
    output: float
    gains: mx.array | None = None

    @property
    def tokens(self) -> int:
        return int(self.inputs.shape[0])

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        return self.inputs, self.miss

    def error(self, gap: mx.array) -> float:
        return float(mx.square(self.miss + product(self.inputs, _weighed(gap, self.gains).T)).sum())

    def summed(self) -> HeldSums:
        hessian, miss = product(self.inputs.T, self.inputs), product(self.miss.T, self.inputs)
        return HeldSums(hessian, miss, float(mx.square(self.miss).sum()), self.output, self.tokens, self.gains)


@dataclass(frozen=True, slots=True)
class HeldSums:
    """hessian: (in, in); miss: M (out, in); energy: sum |y - W xq|^2; output: sum |y|^2; gains: (out,) or
    None; float32."""

    hessian: mx.array
    miss: mx.array
    energy: float
    output: float
    tokens: int
    gains: mx.array | None = None

    @property
    def arrays(self) -> tuple[mx.array, mx.array]:
        return self.hessian, self.miss

    def error(self, gap: mx.array) -> float:
        gap = _weighed(gap, self.gains)
        return float(((product(gap, self.hessian) + 2 * self.miss) * gap).sum()) + self.energy

    def summed(self) -> HeldSums:
        return self


HeldBack = HeldTokens | HeldSums


def hold_back(
    weight: mx.array,
    inputs: mx.array,
    full: mx.array | None = None,
    stream: mx.array | None = None,
    gains: mx.array | None = None,
) -> HeldBack:
    """weight: W (out, in); inputs: Xq (n, in); full: Xf (n, in), None where equal; stream: R (n, out) or None; gains:
    (out,), what an error of each output is worth, None where all are worth the same."""
    weight, quantized = weight.astype(mx.float32), inputs.astype(mx.float32)
    gap = mx.zeros_like(quantized) if full is None else full.astype(mx.float32) - quantized
    miss = product(gap, weight.T)
    if stream is not None:
        miss = miss + stream.astype(mx.float32)
    output = product(quantized, weight.T) + miss
    if gains is not None:
        miss, output = gains * miss, gains * output
    tokens = HeldTokens(quantized, miss, float(mx.square(output).sum()), gains)
    return tokens if _are_few(tokens.tokens, quantized.shape[1]) else tokens.summed()


def merge_held_back(first: HeldBack, second: HeldBack) -> HeldBack:
    """Of the tokens of both; of one kind of text."""
    output = first.output + second.output
    match first, second:
        case HeldTokens(), HeldTokens() if _are_few(first.tokens + second.tokens, first.inputs.shape[1]):
            inputs, miss = (mx.concatenate(pair) for pair in ([first.inputs, second.inputs], [first.miss, second.miss]))
            return HeldTokens(inputs, miss, output, first.gains)
    one, other = first.summed(), second.summed()
    energy = one.energy + other.energy
    tokens = one.tokens + other.tokens
    return HeldSums(one.hessian + other.hessian, one.miss + other.miss, energy, output, tokens, one.gains)


def _weighed(gap: mx.array, gains: mx.array | None) -> mx.array:
    return gap if gains is None else gains[:, None] * gap


def output_error(weight: mx.array, candidate: mx.array, held: HeldBack) -> float:
    """sum |y - candidate xq|^2 / sum |y|^2. weight, candidate: (out, in) float32."""
    return max(held.error(weight - candidate), 0.0) / held.output if held.output > 0 else 0.0


def _are_few(tokens: int, columns: int) -> bool:
    # Beyond, the sums are smaller and cost less to judge by.
    return tokens <= columns // 2


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
