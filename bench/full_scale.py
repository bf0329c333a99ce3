"""Config-I of Gemma 4 26B-A4B at full scale: `python -m bench.full_scale [--kills 10] [--work DIR]`.

The 51.6 GB source comes from a Hub on loopback that makes its bytes up (`bench/made_up_hub.py`), through the real
huggingface_hub, into `configi build --discard-source --memory-limit 3GB`. Prints wall time, peak resident memory of
the build, peak disk, bytes and bits per weight, then `configi verify`. With --kills the build is ended by kill -9 at so
many random moments, and its files are compared with that build's, whose hashes stay in DIR. With --calibrate TOKENS it
is a calibrated build, whose source stays on the disk, and the kills are while it calibrates.
Needs 25 GB of disk; `--layers 6 --experts 8` is a quick run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.made_up_hub import REPO
from quantize.folder.hashing import sha256_of
from tests.support.loopback_hub import LoopbackHub, hub_environment

QUANTIZE = [sys.executable, "-m", "quantize"]
_SAMPLE_S = 0.2


@dataclass
class Peaks:
    """The most that was seen; sampled, but for the memory where Linux keeps the mark itself."""

    memory: int = 0
    disk: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.full_scale")
    parser.add_argument("--work", type=Path, default=Path("full-scale"), help="everything is written here")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--shard-bytes", type=float, default=5e9)
    parser.add_argument("--memory-limit", default="3GB")
    parser.add_argument("--calibrate", type=int, default=0, metavar="TOKENS")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="go on where a run was ended; it prints what was left")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    shape = f"{args.layers}-{args.experts}" + (f"-calibrated-{args.calibrate}" if args.calibrate else "")
    calibrate = ["--calibrate", "--calibration-tokens", str(args.calibrate)] if args.calibrate else []
    random.seed(args.seed)
    reference = args.work / f"uninterrupted-{shape}.json"
    first = json.loads(reference.read_text()) if reference.is_file() else {}
    if args.kills and not first:
        parser.error("the build without kills comes first: its hashes are needed")
    moments = sorted(random.random() for _ in range(args.kills))
    # Beyond the moment itself, so that it hits transfers and syncs as well.
    delays = [random.uniform(0, first["seconds"] / args.kills / 3) for _ in moments]
    output = args.work / f"model-{shape}"
    for folder in () if args.resume else (output, output.with_name(f".{output.name}.building")):
        shutil.rmtree(folder, ignore_errors=True)
    peaks = Peaks()
    with hub(args) as environment:
        plan = json.loads(ask(["plan", REPO, "--json", *calibrate], environment))
        print(json.dumps({name: plan[name] for name in plan if not isinstance(plan[name], list | dict)}, indent=2))
        print(json.dumps({"calibration": plan["calibration"]}))
        build = [
            *QUANTIZE,
            "build",
            REPO,
            str(output),
            "--discard-source",
            "--memory-limit",
            args.memory_limit,
            "--json-progress",
            *calibrate,
        ]
        phase = "calibrating" if calibrate else "building"
        seconds = run(build, environment, list(zip(moments, delays, strict=True)), peaks, args.work, phase)
        verified = ask(["verify", str(output)], environment)
    files = {path.name: sha256_of(path) for path in sorted(output.iterdir())}
    weights = sum(path.stat().st_size for path in output.glob("*.safetensors"))
    result = {
        "seconds": round(seconds, 1),
        "kills": len(moments),
        "peak_memory_bytes": peaks.memory,
        "peak_disk_bytes": peaks.disk,
        "weights_bytes": weights,
        "output_bytes": sum(path.stat().st_size for path in output.iterdir()),
        "verify": verified.strip(),
    }
    print(json.dumps(result, indent=2))
    if not moments:
        reference.write_text(json.dumps({**result, "files": files}, indent=2))
        return 0
    same = files == first["files"]
    print("The files are those of the build without kills." if same else f"The files differ: {files} {first['files']}")
    return 0 if same else 1


def ask(arguments: list[str], environment: dict[str, str]) -> str:
    """What a command prints; its errors go to the terminal."""
    return subprocess.run(
        [*QUANTIZE, *arguments], env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@contextlib.contextmanager
def hub(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    """The environment of a process that knows no other Hub."""
    sizes = ["--layers", str(args.layers), "--experts", str(args.experts), "--shard-bytes", str(args.shard_bytes)]
    command = [sys.executable, "-m", "bench.made_up_hub", *sizes, "--digests", str(args.work / "digests.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = time.monotonic()
        url = process.stdout.readline().strip()
        print(f"hub at {url}, its digests after {time.monotonic() - started:.0f} s", flush=True)
        # Of one shape: a cache knows files by their revision.
        home = args.work / f"home-{args.layers}-{args.experts}"
        yield {**os.environ, **hub_environment(LoopbackHub(url=url), home)}
        process.communicate()


def run(
    build: list[str],
    environment: dict[str, str],
    kills: list[tuple[float, float]],
    peaks: Peaks,
    work: Path,
    phase: str,
) -> float:
    """The build, killed so many seconds after each of the moments (shares of the work of `phase`), then to its end.

    Returns the seconds of it all.
    """
    started = time.monotonic()
    for moment, delay in [*kills, (math.inf, 0.0)]:
        with subprocess.Popen(build, env=environment, stdout=subprocess.PIPE, text=True) as process:
            watching = threading.Thread(target=watch, args=(process, peaks, work))
            watching.start()
            line = follow(process, moment, phase)
            time.sleep(delay)
            process.kill() if moment < 1 else process.wait()
        watching.join()
        print(
            f"{time.monotonic() - started:.0f} s: {'killed after' if moment < 1 else 'ended with'} {line}", flush=True
        )
        if process.returncode > 0:
            raise SystemExit(f"the build ended with {process.returncode}")
    return time.monotonic() - started


def follow(process: subprocess.Popen[str], moment: float, phase: str) -> str:
    """Reads the progress up to the `moment` and returns its line, or the last one."""
    assert process.stdout is not None
    line = ""
    for line in process.stdout:
        told = json.loads(line)
        if told.get("phase") == phase and told["done"] >= moment * (told["total"] or math.inf):
            break
    return line.strip()


def watch(process: subprocess.Popen[str], peaks: Peaks, work: Path) -> None:
    while process.poll() is None:
        with contextlib.suppress(OSError, psutil.Error):
            peaks.memory = max(peaks.memory, resident(process.pid))
        peaks.disk = max(peaks.disk, sum(map(allocated, work.rglob("*"))))
        time.sleep(_SAMPLE_S)


def resident(pid: int) -> int:
    """The high-water mark on Linux, else what it is now."""
    status = Path(f"/proc/{pid}/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process(pid).memory_info().rss)


def allocated(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_blocks * 512
    return 0


if __name__ == "__main__":
    sys.exit(main())
