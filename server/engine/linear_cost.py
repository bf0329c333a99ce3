"""What work on n units costs: a fixed part, and one per unit. Pure: measurements in, predictions out; engine process.

A forward pass reads all weights, whatever its tokens, and then works on each of them; a file is opened, and then read.
Least squares over what was measured. A measurement counts by its units, so the short ends of prompts move nothing, and
it lets the older ones fade in the same degree. One far from what was expected counts in part only: a hiccup does
little, and a machine that became slower is believed after a few.
"""

from __future__ import annotations

# How much a measurement of the usual size replaces of those before it.
_NEWEST = 0.35
# A measurement counts as at most so many times, or at least that part, of what was expected.
_SURPRISE = 2.0
# Sizes that differ by less, as a fraction of their mean, do not tell the fixed part from the other.
_SAME_SIZE = 0.05


class LinearCost:
    """Seconds for n units."""

    def __init__(self) -> None:
        self._fixed_s = 0.0
        self._unit_s = 0.0
        # Weighted sums: of the weights, of n, n * n, seconds and n * seconds.
        self._sums = [0.0] * 5
        self._count = 0

    @property
    def known(self) -> bool:
        return self._count > 0

    def seconds(self, units: float) -> float:
        """0 while nothing is known."""
        return self._fixed_s + units * self._unit_s

    def units(self, seconds: float) -> float:
        """How many can be done in `seconds`; infinite while nothing is known."""
        return max(0.0, seconds - self._fixed_s) / self._unit_s if self._unit_s else float("inf")

    def record(self, units: float, seconds: float) -> None:
        """`units`, at least 1, took `seconds`."""
        if self._count > 1:
            expected = self.seconds(units)
            seconds = min(max(seconds, expected / _SURPRISE), expected * _SURPRISE)
        self._count += 1
        weight, mean = units, self._sums[1] / self._sums[0] if self._sums[0] else units
        kept = 1 - 2 * _NEWEST * units / (units + mean) if units < mean else 1 - _NEWEST
        new = (1.0, units, units * units, seconds, units * seconds)
        self._sums = [kept * old + weight * value for old, value in zip(self._sums, new, strict=True)]
        self._fit()

    def _fit(self) -> None:
        total, n, nn, s, ns = self._sums
        mean, mean_s = n / total, s / total
        variance = nn / total - mean * mean
        if variance > (_SAME_SIZE * mean) ** 2:
            unit_s = (ns / total - mean * mean_s) / variance
            # Neither part can be negative: the line then goes through the origin, or is flat.
            self._unit_s = min(max(unit_s, 0.0), ns / nn)
            self._fixed_s = max(mean_s - self._unit_s * mean, 0.0)
        elif expected := self.seconds(mean):
            # All of one size: both parts change alike, as when the machine gets warm.
            self._fixed_s, self._unit_s = (part * mean_s / expected for part in (self._fixed_s, self._unit_s))
        else:
            self._unit_s = mean_s / mean
