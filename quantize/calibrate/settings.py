"""How a matrix is solved, which determines its bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

# Raised with any change that gives other bytes for the same input.
VERSION = 2

RECIPE: Final = "recipe"
GPTQ: Final = "gptq"
WEIGHTED: Final = "weighted"


@dataclass(frozen=True, slots=True)
class SolverSettings:
    """method: how far the recipe goes; what is less than all of it is there to be compared with. fed, starved: ends of
    the damping, see `damping`; rounds: of refit and descent; shrinkage: toward the pool, in tokens a dimension;
    unjudged: with fewer tokens a dimension, what the guard cannot judge gets weighted grids only.
    """

    method: Literal["recipe", "gptq", "weighted"] = RECIPE

    fed: float = 0.1
    starved: float = 1.0
    rounds: int = 2
    shrinkage: float = 1.0
    unjudged: float = 5.0

    def identity(self) -> dict[str, Any]:
        """What a plan's fingerprint and a manifest must hold of the solver."""
        return {"version": VERSION, **asdict(self)}
