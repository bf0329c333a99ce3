"""Everything that an evaluation found, as one value: what JSON, Markdown, plots and the model card are made of."""

from __future__ import annotations

import msgspec

from quantize.evaluate.generation import Speed
from quantize.evaluate.loops import Loop
from quantize.evaluate.summary import Divergence
from quantize.evaluate.tasks.mmlu import Score
from quantize.evaluate.tasks.niah import Cell

NOT_MEASURED = "not measured"


class Generated(msgspec.Struct, frozen=True):
    """One prompt's greedy reply of at most so many tokens."""

    prompt: str
    tokens: int
    ended: bool
    loop: Loop | None
    speed: Speed


class Protocol(msgspec.Struct, frozen=True):
    """How it was measured: a figure without it says nothing.

    computed: "float32, dequantized" or "as stored", the same for both sides. text: sha256 of the passages' tokens.
    covered: the kinds of text that a calibration may have held. calibrated: whether the model says that it was.
    shared_with_calibration: runs of 16 words that stand in its text too; None where that is not known here.
    """

    computed: str
    text: str
    passage_tokens: int
    covered: list[str]
    made_with: dict[str, str]
    calibrated: bool = False
    shared_with_calibration: int | None = None


class Histogram(msgspec.Struct, frozen=True):
    """Share of the tokens with a KL between `edges[i]` and `edges[i + 1]`; the first and the last take the rest."""

    edges: list[float]
    shares: list[float]


class Evaluation(msgspec.Struct, frozen=True, omit_defaults=True):
    """`groups`: "covered", "uncovered", "all"; one without text is absent. Tasks that were not asked for are None."""

    model: str
    reference: str
    protocol: Protocol
    groups: dict[str, Divergence]
    kinds: dict[str, Divergence]
    histogram: dict[str, Histogram]
    generated: list[Generated] | None = None
    mmlu_letters: Score | None = None
    mmlu_chat: Score | None = None
    needles: list[Cell] | None = None
    reference_needles: list[Cell] | None = None
    tool_calls: str = NOT_MEASURED


def as_json(evaluation: Evaluation) -> str:
    return msgspec.json.format(msgspec.json.encode(evaluation), indent=1).decode() + "\n"
