"""What a calibration has solved: one safetensors file a layer, whole or absent, which the builder reads rows of.

The names are those of the finished model's tensors. The report of each matrix is in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from quantize.calibrate.hessian import STARVED
from quantize.calibrate.recipe import Report, Solved
from quantize.files import sync
from quantize.folder.manifest import TensorCalibration
from quantize.folder.safetensors_format import read_header
from quantize.forward.store import save


@dataclass(frozen=True, slots=True)
class Results:
    """`folder` holds the files of the layers."""

    folder: Path

    def has(self, layer: int) -> bool:
        return self._file(layer).is_file()

    def put(self, layer: int, solved: Mapping[str, Solved]) -> None:
        """By path of the module. On the disk, and then there by one rename."""
        arrays: dict[str, mx.array] = {}
        reports: dict[str, str] = {}
        for path, one in solved.items():
            arrays |= {f"{path}.{part}": getattr(one, part) for part in ("weight", "scales", "biases")}
            reports[path] = json.dumps(_report(one.reports))
        part = self.folder / f".{self._file(layer).name}"
        save(part, arrays, reports)
        sync(part)
        part.replace(self._file(layer))
        sync(self.folder)

    def reports(self, layer: int) -> dict[str, TensorCalibration]:
        loaded: Any = mx.load(str(self._file(layer)), return_metadata=True)
        return {path: TensorCalibration(**json.loads(text)) for path, text in loaded[1].items() if text.startswith("{")}

    def rows(self, layer: int, path: str, start: int, stop: int) -> dict[str, mx.array]:
        """Rows of the stored arrays of one module, leading axes folded: name -> (stop - start, bytes) uint8."""
        file = self._file(layer)
        header = read_header(file)
        found = {}
        with file.open("rb") as opened:
            for name in (f"{path}.{part}" for part in ("weight", "scales", "biases")):
                entry = header.entries[name]
                width = entry.nbytes // int(np.prod(entry.shape[:-1]))
                opened.seek(header.data + entry.begin + start * width)
                read = np.frombuffer(opened.read((stop - start) * width), np.uint8)
                found[name] = mx.array(read.reshape(stop - start, width))
        return found

    def _file(self, layer: int) -> Path:
        return self.folder / f"solved-{layer:03d}.safetensors"


def _report(reports: tuple[Report, ...]) -> dict[str, Any]:
    chosen: dict[str, int] = {}
    for report in reports:
        chosen[report.chosen] = chosen.get(report.chosen, 0) + 1
    ratios = [report.ratio for report in reports]
    return {
        "chosen": chosen,
        "ratio": round(sum(ratios) / len(ratios), 4),
        "worst": round(max(ratios), 4),
        "tokens": min(report.tokens for report in reports),
        "starved": sum(report.tokens_per_dimension < STARVED for report in reports),
    }
