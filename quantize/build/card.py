"""README.md of a built model: what it is, in the numbers of its plan."""

from __future__ import annotations

from pathlib import Path

from quantize.calibrate.calibration import CalibratedWeights
from quantize.plan.plan import Plan
from quantize.plan.report import exceptions, rows_of

_CARD = """\
---
library_name: mlx
pipeline_tag: text-generation
tags:
- mlx
{base}---

# {name}

{origin} in {policy}: {description}.

| | |
| --- | --- |
| Parameters | {parameters:,} |
| Bits per weight | {bits:.4f}, scales and biases included |
| Size | {gigabytes:.2f} GB ({gibibytes:.2f} GiB) |

| Role | Layers | Quantization | Parameters | Bytes |
| --- | --- | --- | --- | --- |
{rows}
{exceptions}{made} Text only. The sha256 of every file is in `configi.json`. It loads in mlx-lm:

```sh
mlx_lm.generate --model . --prompt "Hello"
```
"""
_QUANTIZED = """\
Weights are rounded to nearest, without calibration; `config.json` has the bits of every module. Ollama cannot load
the model: it supports neither these bits nor MLX's names of stacked experts."""
_KEPT = "Weights are those of the source."


_CALIBRATED = """\
Weights are calibrated on {tokens:,} tokens of {kinds} kinds of text. On {held_back:,} others that were held back, the
error of a matrix's output is {ratio:.2f} of what rounding gives, in the mean, and of none is it larger
(`configi.json` has each). Of {solved:,} solutions, each of a matrix, of one expert's or of a part of a large one,
{starved:,} had fewer than five tokens for each input dimension. `config.json` has the bits of every module. Ollama
cannot load the model: it supports neither these bits nor MLX's names of stacked experts."""


def write_card(plan: Plan, folder: Path, calibrated: CalibratedWeights | None = None) -> None:
    rows = "".join(
        f"| {row.role} | {row.layers} | {row.width} | {row.parameters:,} | {row.nbytes:,} |\n" for row in rows_of(plan)
    )
    listed = "".join(f"* {line}\n" for line in exceptions(plan))
    revision = f" (revision `{plan.revision}`)" if plan.revision else ""
    text = _CARD.format(
        base=f"base_model: {plan.repository}\n" if plan.repository else "",
        name=f"{plan.label.rpartition('/')[2]} {plan.policy.name}",
        origin=f"{plan.label}{revision}",
        policy=plan.policy.name,
        description=plan.policy.description,
        parameters=plan.parameters,
        bits=plan.bits_per_weight,
        gigabytes=plan.tensor_bytes / 1e9,
        gibibytes=plan.tensor_bytes / 2**30,
        rows=rows,
        exceptions=f"Not as the policy and the source have it:\n\n{listed}\n" if listed else "",
        made=_made(plan, calibrated),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _made(plan: Plan, calibrated: CalibratedWeights | None) -> str:
    if not any(output.spec for output in plan.tensors):
        return _KEPT
    if calibrated is None:
        return _QUANTIZED
    every = calibrated.figures.values()
    return _CALIBRATED.format(
        tokens=sum(calibrated.kinds.values()),
        kinds=len(calibrated.kinds),
        held_back=sum(calibrated.held_back.values()),
        ratio=sum(figures.ratio for figures in every) / len(every),
        starved=sum(figures.starved for figures in every),
        solved=sum(sum(figures.chosen.values()) for figures in every),
    )
