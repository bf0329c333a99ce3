"""On a model with real damage and the same bytes: rounding, weighted grids, GPTQ and the recipe, each better."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bench.calibration import TRAINED, Bench, run, table
from bench.calibration_rows import METHODS, ROUNDING
from tests.support.trained import write_trained_model


@pytest.mark.slow
def test_each_step_of_the_recipe_is_worth_its_while_on_covered_and_on_uncovered_text(tmp_path: Path) -> None:
    bench = Bench(TRAINED, write_trained_model(tmp_path / "source"), "uniform-2", 8192, tmp_path)
    found = run(bench, METHODS)
    for group in ("covered", "uncovered"):
        losses = [found.rows[method].groups[group].kl for method in (ROUNDING, *METHODS)]
        for more, less in itertools.pairwise(losses):
            assert less < more, table(found)
        assert losses[-1] < 0.75 * losses[0], table(found)
