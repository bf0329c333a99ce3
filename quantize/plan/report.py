"""`configi plan`: what a build would produce and need, as a table and as JSON."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from quantize.console import DoorConsole
from quantize.machine import HEADROOM, fits, model_memory
from quantize.plan.memory import Mac, MemoryPlan
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.plan import Plan
from quantize.source.families import is_leftover

_GIB = 2**30
_LAYER = re.compile(r"\.(\d+)\.")
_SMALL_MAC = Mac(16 * _GIB)


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors of one role with the same quantization; the fields are keys of the JSON. `layers` are ranges, or "-"."""

    role: str
    layers: str
    width: str
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CalibrationNeeds:
    """The fields are keys of the JSON. Memory and disk at most; `seconds` by a moment's measurement of this machine."""

    tokens: int
    peak_memory_bytes: int
    memory_limit_bytes: int
    peak_disk_bytes: int
    seconds: float


def rows_of(plan: Plan) -> list[Row]:
    """The largest first."""
    groups: dict[tuple[str, str], list[OutputTensor]] = {}
    for output in plan.tensors:
        width = str(output.spec) if output.spec else f"{output.dtype} kept"
        groups.setdefault((output.role, width), []).append(output)
    return [
        Row(
            role,
            _ranges({output.layer for output in group if output.layer is not None}),
            width,
            sum(output.parameters for output in group),
            sum(output.nbytes for output in group),
        )
        for (role, width), group in sorted(groups.items(), key=lambda item: -sum(t.nbytes for t in item[1]))
    ]


def _ranges(layers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "-"


def exceptions(plan: Plan) -> list[str]:
    """What is not as the policy and the source have it, and why: a line for tensors of one name, in whatever layers."""
    other = {output.name: f"{output.spec or 'kept'}; {why}" for output in plan.tensors if (why := output.why_other)}
    return _by_name(other) + _by_name(dict.fromkeys(_left_out(plan), "left out; mlx-lm's model has no place for it"))


def _left_out(plan: Plan) -> list[str]:
    """What the source has in the layers that are built, and may be part of the model elsewhere."""
    built = {_layer(tensor.name) for tensor, _ in plan.work} - {""}
    return [name for name in plan.dropped if _layer(name) in built and not is_leftover(name)]


def _layer(name: str) -> str:
    """The beginning of a tensor's name that those of its layer share."""
    match = _LAYER.search(name)
    return name[: match.end()] if match else ""


def _by_name(told: Mapping[str, str]) -> list[str]:
    groups: dict[tuple[str, str], list[int]] = {}
    for name, what in told.items():
        match = _LAYER.search(name)
        layer = [int(match[1])] if match else []
        groups.setdefault((_LAYER.sub(".*.", name, count=1), what), []).extend(layer)
    return [
        f"{name}{f' (layers {_ranges(layers)})' if layers else ''}: {what}" for (name, what), layers in groups.items()
    ]


def as_json(
    plan: Plan,
    memory: MemoryPlan,
    scratch_bytes: int,
    calibration: CalibrationNeeds | None = None,
    mac: Mac | None = None,
) -> dict[str, Any]:
    """Everything in the report, under the keys that programs rely on."""
    available, free = model_memory(), shutil.disk_usage(Path.cwd()).free
    small = _SMALL_MAC.metal_bytes
    return {
        "source": plan.label,
        "repository": plan.repository,
        "revision": plan.revision,
        "policy": plan.policy.name,
        "parameters": plan.parameters,
        "bits_per_weight": plan.bits_per_weight,
        "output_bytes": plan.output_bytes,
        "files": [{"name": file.name, "size": file.header.size} for file in plan.files],
        "table": [asdict(row) for row in rows_of(plan)],
        "other_widths": {
            output.name: [str(output.policy_spec), str(output.spec)] for output in plan.tensors if output.why_other
        },
        "dropped_tensors": len(plan.dropped),
        "build": {
            "read_bytes": plan.work_bytes,
            "peak_memory_bytes": memory.peak_bytes,
            "peak_disk_bytes": plan.output_bytes + scratch_bytes,
            "free_disk_bytes": free,
            "fits": plan.output_bytes + scratch_bytes <= free,
        },
        "calibration": asdict(calibration) if calibration else None,
        "headroom_bytes": HEADROOM,
        "this_machine": {"memory_bytes": available, "fits": fits(plan.output_bytes, available)},
        "mac_16gb": {"memory_bytes": small, "fits": fits(plan.output_bytes, small)},
        "fit_mac": _fit(plan, mac) if mac else None,
    }


def print_report(
    console: DoorConsole,
    plan: Plan,
    memory: MemoryPlan,
    scratch_bytes: int,
    calibration: CalibrationNeeds | None = None,
    mac: Mac | None = None,
) -> None:
    facts = as_json(plan, memory, scratch_bytes, mac=mac)
    revision = f" at {plan.revision}" if plan.revision else ""
    console.print(f"{plan.label}{revision}, {plan.policy.name}: {plan.policy.description}\n")
    table = Table("role", "layers", "quantization", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("bytes", justify="right")
    for row in rows_of(plan):
        table.add_row(row.role, row.layers, row.width, f"{row.parameters:,}", f"{row.nbytes:,}")
    console.print(table)
    for line in exceptions(plan):
        console.print(line)
    build = facts["build"]
    lines = {
        "parameters": f"{plan.parameters:,}" + (f" ({len(plan.dropped)} tensors dropped)" if plan.dropped else ""),
        "bits per weight": f"{plan.bits_per_weight:.4f}",
        "output": f"{_size(plan.output_bytes)} in {_counted(len(plan.files), 'file')}",
        "build": f"reads {_gb(plan.work_bytes)}, at most {_gb(memory.peak_bytes)} of memory and "
        f"{_gb(build['peak_disk_bytes'])} of disk ({_gb(build['free_disk_bytes'])} is free here: "
        f"{_fits(build['fits'])})",
        "this machine": f"{_size(facts['this_machine']['memory_bytes'])} for a model: "
        f"{_fits(facts['this_machine']['fits'])}",
        "a Mac of 16 GB": f"Metal gives {_size(facts['mac_16gb']['memory_bytes'])} by default: "
        f"{_fits(facts['mac_16gb']['fits'])}",
    }
    if mac is not None:
        fit = facts["fit_mac"]
        lines["--fit-mac"] = (
            f"of {_size(fit['metal_bytes'])} that Metal gives there, {_size(fit['tensor_bytes'])} for weights, "
            f"{fit['bits_per_weight']:.3f} bits each; these take {_size(plan.tensor_bytes)}: {_fits(fit['fits'])}"
        )
    if calibration is not None:
        fits = _fits(calibration.peak_memory_bytes <= calibration.memory_limit_bytes)
        lines["calibration"] = (
            f"{calibration.tokens:,} tokens, at most {_gb(calibration.peak_memory_bytes)} of memory (the limit is "
            f"{_gb(calibration.memory_limit_bytes)}: {fits}) and {_gb(calibration.peak_disk_bytes)} more of disk; "
            f"about {_counted(max(1, round(calibration.seconds / 60)), 'minute')} on this machine"
        )
    console.print()
    for name, text in lines.items():
        console.print(f"{name:16} {text}", soft_wrap=True)


def _fit(plan: Plan, mac: Mac) -> dict[str, Any]:
    return {
        "memory_bytes": mac.memory_bytes,
        "metal_bytes": mac.metal_bytes,
        "tensor_bytes": mac.tensor_bytes,
        "bits_per_weight": mac.tensor_bytes * 8 / plan.parameters,
        "fits": plan.tensor_bytes <= mac.tensor_bytes,
    }


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"


def _size(count: int) -> str:
    return f"{_gb(count)} ({count / _GIB:.2f} GiB)"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _fits(fits: bool) -> str:
    return "it fits" if fits else "it does not fit"
