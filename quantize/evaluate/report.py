"""An evaluation in Markdown: the whole report, and the section that a model card holds. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from quantize.evaluate.evaluation import Evaluation
from quantize.evaluate.summary import RUN, Divergence
from quantize.evaluate.tasks.mmlu import Score
from quantize.evaluate.tasks.niah import Cell

_HEAD = """\
| Text | Tokens | KL mean | median | p99 | p99.9 | max | same top 1 | RMS Δp | perplexity | of the reference |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def markdown(evaluation: Evaluation, plots: Sequence[str] = ()) -> str:
    """`plots` are file names beside the report."""
    pictures = "".join(f"\n![{name.rpartition('.')[0]}]({name})\n" for name in plots)
    return f"# {evaluation.model} against {evaluation.reference}\n\n{card_section(evaluation)}{pictures}"


def card_section(evaluation: Evaluation) -> str:
    """`## Quality` and what follows, as a model card shows it; ends with a line feed."""
    return "\n".join(["## Quality\n", *_parts(evaluation)])


def _parts(evaluation: Evaluation) -> Iterator[str]:
    protocol = evaluation.protocol
    yield (
        f"KL divergence in nats a token of this model from {evaluation.reference}, exact over the whole vocabulary, on "
        f"the tokens of answers in passages of at most {protocol.passage_tokens} tokens; 95 % intervals by a bootstrap "
        f"over runs of {RUN} tokens. "
        f"Computed: {protocol.computed}. Text `{protocol.text[:12]}`; covered kinds, which a calibration may hold: "
        f"{', '.join(protocol.covered) or 'none'}. "
        f"{', '.join(f'{name} {v}' for name, v in protocol.made_with.items())}.\n"
    )
    if protocol.calibrated:
        yield f"{_overlap(protocol.shared_with_calibration)}\n"
    yield (
        _HEAD
        + "".join(_row(f"**{name}**", value) for name, value in evaluation.groups.items())
        + "".join(_row(kind, value) for kind, value in evaluation.kinds.items())
    )
    if evaluation.generated:
        yield "| Greedy reply to | Tokens | Ends | Prefill, tok/s | Decode, tok/s | TTFT, s | Peak memory, GB |"
        yield "| --- | --- | --- | --- | --- | --- | --- |"
        for one in evaluation.generated:
            loop = f"**in a loop** of {one.loop.period} tokens" if one.loop else None
            ends = "by itself" if one.ended else loop or "at the limit, no loop"
            speed = one.speed
            rates = f"{speed.prefill:.1f} | {speed.decode:.1f} | {speed.first_token_s:.2f}"
            yield f"| {one.prompt} | {one.tokens} | {ends} | {rates} | {speed.peak_memory / 1e9:.2f} |"
        yield ""
    scores = {"5-shot, letter logits": evaluation.mmlu_letters, "0-shot, chat": evaluation.mmlu_chat}
    yield from (f"MMLU, {name}: {_score(score)}.\n" for name, score in scores.items() if score)
    if evaluation.needles:
        yield "Needle in a haystack, found of tries" + (" (the reference's)" if evaluation.reference_needles else "")
        yield _grid(evaluation.needles, evaluation.reference_needles)
    yield f"Valid tool calls: {evaluation.tool_calls}.\n"


def _overlap(shared: int | None) -> str:
    if shared is None:
        return "It is not known here which text the model was calibrated on, nor whether this is some of it."
    if shared == 0:
        return "No 16 words in a row of this text stand in what the model was calibrated on."
    return f"**{shared:,} runs of 16 words stand in what the model was calibrated on too: these figures flatter it.**"


def _row(name: str, d: Divergence) -> str:
    figures = [
        str(d.kl), f"{d.kl_median.value:.4g}", f"{d.kl_p99.value:.4g}", f"{d.kl_p999.value:.4g}", f"{d.kl_max:.4g}",
        f"{d.same_top.value:.1%}", f"{d.rms_delta_p.value:.2%}", str(d.perplexity),
        f"{d.reference_perplexity.value:.4g}",
    ]  # fmt: skip
    return f"| {name} | {d.tokens:,} | {' | '.join(figures)} |\n"


def _score(score: Score) -> str:
    subjects = ", ".join(f"{name} {right}/{asked}" for name, (right, asked) in score.subjects.items())
    return f"{score.right}/{score.asked} ({score.right / score.asked:.1%}; {subjects})"


def _grid(cells: Sequence[Cell], reference: Sequence[Cell] | None) -> str:
    def by_place(cells: Sequence[Cell]) -> Mapping[tuple[int, float], Cell]:
        return {(cell.length, cell.depth): cell for cell in cells}

    own, other = by_place(cells), by_place(reference or ())
    depths = sorted({cell.depth for cell in cells})
    head = " | ".join(f"{depth:.0%} deep" for depth in depths)
    lines = [f"\n| Tokens | {head} |", f"| --- {'| --- ' * len(depths)}|"]
    for length in sorted({cell.length for cell in cells}):
        shown = []
        for depth in depths:
            cell, beside = own[length, depth], other.get((length, depth))
            shown.append(f"{cell.found}/{cell.tries}" + (f" ({beside.found}/{beside.tries})" if beside else ""))
        lines.append(f"| {length:,} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
