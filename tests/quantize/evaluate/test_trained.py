"""The trained tiny model is a judge: rounding damages it in order, and it tells which roles are the sensitive ones."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import pytest
from mlx_lm.utils import load_tokenizer

from quantize.evaluate.measure import measure
from quantize.evaluate.summary import Divergence, summarize
from quantize.evaluate.texts import Passage
from quantize.forward.models import FolderModel, InFloat32
from quantize.forward.store import InMemory
from tests.support.rounding import Rounded
from tests.support.trained import HELD_OUT, stdlib_text, write_trained_model

LENGTH, PASSAGES = 256, 4
Measured = Callable[..., Divergence]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """A width, and roles that have 8 bits instead -> what rounding costs on docstrings that the model has not seen."""
    folder = write_trained_model(tmp_path_factory.mktemp("trained"))
    ids = load_tokenizer(folder).encode(stdlib_text(HELD_OUT, "prose"))[: LENGTH * PASSAGES]
    passages = [Passage("prose", ids[at : at + LENGTH], 1) for at in range(0, len(ids), LENGTH)]
    source, states = InFloat32(FolderModel(folder)), InMemory()

    @functools.cache
    def cost(bits: int, *at_eight: str) -> Divergence:
        rounded = Rounded(source, lambda path: 8 if at_eight and path.endswith(at_eight) else bits)
        return summarize(measure(source, rounded, passages, states=states)["prose"])

    return cost


def test_the_model_has_learnt_its_text(measured: Measured) -> None:
    # Of 512 tokens, of which one that knows nothing would find each as likely.
    assert measured(8).reference_perplexity.value < 30


def test_rounding_costs_more_with_every_bit_less_and_the_gaps_are_clear(measured: Measured) -> None:
    costs = [measured(bits) for bits in (8, 4, 3, 2)]
    for less, more in itertools.pairwise(costs):
        assert less.kl.high < more.kl.low
        assert more.kl.value > 2.5 * less.kl.value
        assert less.same_top.value > more.same_top.value
    assert costs[-1].perplexity.value > 1.3 * costs[-1].reference_perplexity.value


def test_what_writes_back_is_worth_its_bits_more_than_what_reads(measured: Measured) -> None:
    """A/B isolation: everything at 3 bits but one role at 8; what that wins, by the weights it took."""

    def gain(*role: str) -> float:
        return everything - measured(3, *role).kl.value

    everything = measured(3).kl.value
    # Of one size.
    assert gain("o_proj") > 1.2 * gain("q_proj") > 0
    # Gate and up are twice as large as down.
    assert gain("switch_glu.down_proj") > 0.5 * gain("switch_glu.gate_proj", "switch_glu.up_proj") > 0
