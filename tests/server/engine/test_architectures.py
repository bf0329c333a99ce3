"""Every architecture that the installed mlx-lm has, through the engine: as the bare model answers, token for token.

The models are tiny and random (`tests/support/architectures.py`), the scenarios those of a conversation
(`tests/support/architecture_run.py`). Slow but for the first two.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from server.engine.loading import load
from server.engine.rehearsal import Together, rehearse
from tests.support import architecture_table
from tests.support.architecture_run import (
    bare,
    difference,
    error_in_a_batch,
    error_with_padding,
    observe,
    prompt,
)
from tests.support.architectures import CHUNK_DEPENDENT, NEEDS_METAL, UNTRIED, names, write_architecture

MLX_LM, KEPT = architecture_table.read()
TRIED = [name for name in names() if name not in UNTRIED]
SERVED = [name for name in TRIED if name in KEPT and KEPT[name].refused is None]
# Of a logit. What is right differs by rounding, what is wrong by tenths.
ROUNDING, WRONG = 1e-3, 1e-2


def test_the_docs_know_every_architecture_of_the_installed_mlx_lm() -> None:
    again = "run `python -m tools.architectures` and `make docs-tables`"
    assert version("mlx-lm") == MLX_LM, again
    assert sorted(KEPT) == TRIED, again


def test_nothing_is_untried_that_does_not_exist() -> None:
    assert {*UNTRIED, *NEEDS_METAL, *CHUNK_DEPENDENT} <= {*names()}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIED)
def test_the_engine_answers_as_the_bare_model_does(name: str, tmp_path: Path) -> None:
    observed = observe(tmp_path, name)
    if name not in CHUNK_DEPENDENT:
        assert observed.wrong == {}
    if not (name in NEEDS_METAL and mx.metal.is_available()):
        kept = KEPT[name]
        # Reasons have addresses and versions in them.
        assert (observed.refused is None) == (kept.refused is None), observed.refused
        shown = ("batched", "read_together", "prefix", "disk")
        assert [getattr(observed, field) for field in shown] == [getattr(kept, field) for field in shown]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRIED if name not in SERVED and name not in NEEDS_METAL])
def test_what_is_refused_does_not_answer_in_mlx_lm_either(name: str, tmp_path: Path) -> None:
    model, _ = load_model(write_architecture(tmp_path, name))
    with pytest.raises((ValueError, TypeError, AttributeError)):
        bare(model, prompt(30, 1), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHUNK_DEPENDENT))
def test_what_depends_on_the_chunks_does_so_in_mlx_lm(name: str, tmp_path: Path) -> None:
    model, _ = load_model(write_architecture(tmp_path, name))
    tokens = prompt(30, 1)
    assert difference(bare(model, tokens, 6, chunk=5), bare(model, tokens, 6))


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_what_is_batched_is_right_in_company_and_what_is_not_would_be_wrong(name: str, tmp_path: Path) -> None:
    model, vocab_size, _ = load(write_architecture(tmp_path, name))
    together = rehearse(model, vocab_size)
    if together.decode:
        assert error_in_a_batch(model) < ROUNDING
    if together.prefill:
        assert error_with_padding(model) < ROUNDING
    if together == Together(prefill=False, decode=True):
        assert error_with_padding(model) > WRONG
    if together == Together(prefill=False, decode=False):
        assert _fails_in_company(model)


def _fails_in_company(model: object) -> bool:
    try:
        return error_in_a_batch(model) > WRONG or error_with_padding(model) > WRONG
    # No merge, shapes that do not fit, an array where a number was expected.
    except (AttributeError, ValueError):
        return True
