"""What two sides would have said of a scenario that nobody measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.result import Measured, Result, Row, Target, figures
from bench.setup import Setup

_SETUP = Setup("2026-11-24", "a machine", 2, "3.11", "0.32.4", "0.32.2", "0.1.0", "a BLAS")
_ROWS = (Row("gap", "longest gap", "s", Target(0.1)), Row("share", "share", "", Target(0.9, True, absolute=True)))


@pytest.fixture
def result() -> Callable[..., Result]:
    """Called with configi's `gap`, to be a tenth of the other's 10 s, and `share`, to be 0.9 itself."""

    def made(**values: float) -> Result:
        sides = Measured({"gap": 10.0, "share": 0.5}), Measured(values)
        return Result("running_stream", "A title", "mlx_lm.server", _SETUP, figures(_ROWS, *sides))

    return made
