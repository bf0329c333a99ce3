"""`configi build` beside `mlx_lm.convert`: `python -m bench.build`, the same source and the same widths, in turns.

The source is a Gemma 4 mixture of experts in the Hub's layout, with the real widths of every tensor and few layers,
written to a temporary folder first. Both quantize everything but the router to 4 bits in groups of 64. Prints wall time
and peak resident memory of each process, and how many tensors of the two outputs are equal, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from tests.support.checkpoints import GEMMA4_26B_A4B, gemma4, write


@dataclass(frozen=True)
class Run:
    wall_s: float
    cpu_s: float
    peak_bytes: int


def timed(command: Sequence[str]) -> Run:
    """To its end, alone; figures of that process only."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(said.decode())
    # Bytes on macOS, kilobytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def tensors(folder: Path) -> dict[str, mx.array]:
    return {name: array for file in folder.glob("model*.safetensors") for name, array in mx.load(str(file)).items()}  # type: ignore[union-attr]


def equal(a: Path, b: Path) -> tuple[int, int]:
    """Tensors that are the same in both, and those that are in either."""
    left, right = tensors(a), tensors(b)
    same = [
        name
        for name in left.keys() & right.keys()
        if left[name].shape == right[name].shape and mx.array_equal(left[name], right[name]).item()
    ]
    return len(same), len(left.keys() | right.keys())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4, help="1.6 GB of source each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-build-", dir=args.folder) as name:
        folder = Path(name)
        config, shapes = gemma4(replace(GEMMA4_26B_A4B, layers=args.layers, vocabulary=32768, vision_layers=1))
        source = write(folder / "source", config, shapes, shards=2)
        size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
        ours, theirs = folder / "ours", folder / "theirs"
        commands = {
            "configi build": ["-m", "quantize", "build", str(source), str(ours), "--policy", "uniform-4"],
            "mlx_lm.convert": ["-m", "mlx_lm", "convert", "--hf-path", str(source), "--mlx-path", str(theirs), "-q"],
        }
        runs: dict[str, list[Run]] = {label: [] for label in commands}
        for _ in range(args.rounds):
            for label, command in commands.items():
                shutil.rmtree(Path(command[4] if label.startswith("configi") else command[6]), ignore_errors=True)
                runs[label].append(timed(command))
        same, all_tensors = equal(ours, theirs)
        report(size, runs, same, all_tensors)


def report(size: int, runs: dict[str, list[Run]], same: int, all_tensors: int) -> None:
    print(f"{size / 1e9:.2f} GB of source, {os.cpu_count()} cores, mlx {version('mlx')}, mlx-lm {version('mlx-lm')}")
    middle = {
        label: Run(*(statistics.median(getattr(r, field) for r in done) for field in ("wall_s", "cpu_s", "peak_bytes")))
        for label, done in runs.items()
    }
    for label, run in middle.items():
        print(f"{label:16} {run.wall_s:7.1f} s wall {run.cpu_s:7.1f} s CPU {run.peak_bytes / 1e9:6.2f} GB peak")
    ours, theirs = middle.values()
    print(
        f"{'ratio':16} {ours.wall_s / theirs.wall_s:7.2f}   wall {ours.cpu_s / theirs.cpu_s:7.2f}   CPU "
        f"{ours.peak_bytes / theirs.peak_bytes:6.2f}    peak"
    )
    print(f"{same} of {all_tensors} tensors are equal bit for bit")


if __name__ == "__main__":
    main()
