"""The plan of a build within a budget: its widths are measured, unless that build is there already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from quantize.build.output_folder import OutputFolder
from quantize.folder.quant_spec import QuantSpec
from quantize.plan.plan import Plan

Widths = dict[str, QuantSpec]


def plan_within(
    budget: int, plan: Plan, output: OutputFolder, measured: Callable[[Plan], Widths], planned: Callable[..., Plan]
) -> Plan:
    """`plan`: as the policy has it; `planned`: with other `widths` and `calibration`. Raises QuantizeError."""
    wish = replace(plan, calibration={**(plan.calibration or {}), "budget": budget})
    widths = output.widths_built(wish)
    if widths is None:
        # Losses are long in the measuring: what is in the way is found before.
        output.is_built(wish)
        widths = measured(wish)
    return planned(calibration=wish.calibration, widths=widths)
