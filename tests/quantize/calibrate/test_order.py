"""On a model with real damage and the same bytes: rounding, weighted grids, GPTQ and the recipe, each better."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bench.calibration import METHODS, TRAINED, run, table
from tests.support.trained import write_trained_model


@pytest.mark.slow
def test_each_step_of_the_recipe_is_worth_its_while_on_covered_and_on_uncovered_text(tmp_path: Path) -> None:
    found = run(write_trained_model(tmp_path / "source"), TRAINED, "uniform-2", 8192, tmp_path)
    for group in ("covered", "uncovered"):
        losses = [found.groups[method][group].kl for method in ("rounding", *METHODS)]
        for more, less in itertools.pairwise(losses):
            assert less < more, table(found)
        assert losses[-1] < 0.75 * losses[0], table(found)
