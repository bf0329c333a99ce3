"""`configi doctor`: what this machine is, how much of its memory a model may use, what fits, and what a pass costs.

The JSON has the constants under the names that the simulated device of `bench/` takes. On a Mac the GPU is asked; that
part was tested with stand-ins and has not been run on a Mac.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from quantize.console import console
from quantize.machine import HEADROOM, Ask, ask_device, fits, metal_limit, model_memory, read_wired_limit_mb
from quantize.printable import print_json
from server.cli.demo import DEMO_MODEL
from server.cli.power import low_power_mode
from server.models.acquire import Acquirer
from server.models.catalog import Catalog
from server.models.memory import weight_bytes
from server.settings.types import Settings

# Gemma 4 26B-A4B as the policies build it, by `configi plan`.
_GEMMA = {"config-i": 11_990_000_000, "config-i-no2bit": 11_890_000_000, "config-i-16gb": 10_320_000_000}
# Of what is measured, what the report has.
_COSTS = (
    "sweep_s", "token_s", "cliff_tokens", "cliff_factor", "chunk_seconds", "decode_s", "row_share", "step_seconds",
)  # fmt: skip
# Beyond the time for measuring: starting, and loading the model.
_LOADING_S = 600

# Folder and seconds -> what passes cost there.
Costs = Callable[[Path, float], dict[str, Any]]


def report(settings: Settings, model: Path | None, seconds: float, *, as_json: bool) -> None:
    facts = examine(settings, model, seconds)
    if as_json:
        print_json(facts)
    else:
        _print(facts)


def pass_costs(folder: Path, seconds: float) -> dict[str, Any]:
    """Measured in a process of its own; empty when it fails."""
    command = [sys.executable, "-P", "-m", "server.engine.pass_costs", str(folder), str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=seconds + _LOADING_S, check=False)
        costs: dict[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    return costs


def examine(
    settings: Settings, model: Path | None, seconds: float, *, ask: Ask = ask_device, costs: Costs = pass_costs
) -> dict[str, Any]:
    """The whole report. Sizes in bytes; with `seconds` 0, or no model on this machine, nothing is measured."""
    device, memory = ask(), int(psutil.virtual_memory().total)
    recommended = device.get("max_recommended_working_set_size") or model_memory()
    acquirer = Acquirer(settings.storage)
    folders = {entry.id: acquirer.locate(entry) for entry in Catalog(settings).entries}
    here = {id: weight_bytes(folder) for id, folder in folders.items() if folder is not None}
    measured = model or acquirer.locate(DEMO_MODEL) or next((f for f in folders.values() if f is not None), None)
    found = costs(measured, seconds) if measured is not None and seconds else {}
    return {
        "chip": device.get("device_name") or platform.processor() or platform.machine(),
        "os": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "memory_bytes": memory,
        "device": device,
        "iogpu_wired_limit_mb": read_wired_limit_mb(),
        "recommended_bytes": int(recommended),
        # What our table would say of a Mac of this size: to be compared with what it really recommends.
        "table_bytes": metal_limit(memory, read_wired_limit_mb()),
        "headroom_bytes": HEADROOM,
        "low_power": low_power_mode(),
        "fits": [
            {"model": name, "weight_bytes": size, "fits": fits(size, int(recommended))}
            for name, size in {**_GEMMA, **here}.items()
        ],
        "measured_model": None if not found or measured is None else measured.name,
        **{name: found.get(name) for name in _COSTS},
        "versions": {name: version(name) for name in ("configi-mlx", "mlx", "mlx-lm")},
    }


def _print(facts: dict[str, Any]) -> None:
    out = console()
    lines = {
        "chip": facts["chip"],
        "system": facts["os"],
        "memory": _gb(facts["memory_bytes"]),
        "for a model": f"{_gb(facts['recommended_bytes'])}; our table for Macs says {_gb(facts['table_bytes'])}",
        "wired limit": f"{facts['iogpu_wired_limit_mb']} MB" if facts["iogpu_wired_limit_mb"] else "as macOS sets it",
        "Low Power Mode": {True: "on: expect half the speed or less", False: "off", None: "nobody can tell"}[
            facts["low_power"]
        ],
    }
    if facts["sweep_s"] is not None:
        cliff = facts["cliff_tokens"]
        lines["a pass"] = (
            f"{facts['sweep_s'] * 1000:.1f} ms and {facts['token_s'] * 1000:.3f} ms for each token "
            f"({facts['measured_model']})" + (f"; slower below {cliff} tokens" if cliff > 1 else "")
        )
    if facts["decode_s"] is not None:
        more = "" if facts["row_share"] is None else f"; {facts['row_share']:.0%} of that for each further sequence"
        lines["a decode step"] = f"{facts['decode_s'] * 1000:.1f} ms{more}"
    for name, text in lines.items():
        out.print(f"{name:16} {text}", soft_wrap=True, markup=False)
    table = Table("model", "weights", "", box=None, pad_edge=False)
    for row in facts["fits"]:
        table.add_row(row["model"], _gb(row["weight_bytes"]), "it fits" if row["fits"] else "it does not fit")
    out.print(table)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
