"""A checkpoint of three shards on a Hub on loopback, read by a process with the real huggingface_hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantize.folder.safetensors_format import lay_out
from tests.support import forked
from tests.support.loopback_hub import (
    COMMIT,
    REPO,
    Action,
    Files,
    LoopbackHub,
    hub_environment,
)

ROWS, COLUMNS = 1000, 256
MIB = 2**20
SHARDS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
FIRST = f"GET /{REPO}/resolve/{COMMIT}/{SHARDS[0]}"
SECOND = f"GET /{REPO}/resolve/{COMMIT}/{SHARDS[1]}"


def header(handler: Any) -> None:
    """The honest answer: the first request for a shard is for its header."""
    handler.honest(handler.path)


def source_files(rows: int = ROWS) -> Files:
    files: Files = {
        "config.json": b'{"model_type": "llama"}',
        "tokenizer.json": b"{}",
        "LICENSE": b"free",
        "modeling_evil.py": b"raise SystemExit",
        "model.safetensors.index.json": json.dumps(
            {"weight_map": {f"t{number}": shard for number, shard in enumerate(SHARDS)}}
        ).encode(),
    }
    for number, shard in enumerate(SHARDS):
        start, _ = lay_out([(f"t{number}", "U8", (rows, COLUMNS))])
        files[shard] = start + np.random.default_rng(number).bytes(rows * COLUMNS)
    return files


@dataclass
class Result:
    code: int
    lines: list[dict[str, Any]]
    stderr: str

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]


@dataclass
class Bench:
    hub: LoopbackHub
    folder: Path

    @property
    def scratch(self) -> Path:
        return self.folder / "scratch"

    @property
    def storage(self) -> Path:
        return self.folder / "home" / "hub" / f"models--{REPO.replace('/', '--')}"

    def command(self, *options: str, source: str = REPO) -> list[str]:
        return [sys.executable, "-m", "tests.support.read_checkpoint", source, *options]

    def environment(self, **changes: str) -> dict[str, str]:
        return {**os.environ, **hub_environment(self.hub, self.folder / "home"), **changes}

    def read(self, *options: str, source: str = REPO, **environment: str) -> Result:
        done = forked.run(
            "tests.support.read_checkpoint",
            source,
            *options,
            environment=self.environment(**environment),
            timeout=60,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        return Result(done.returncode, lines, done.stderr)

    def discarding(self, *options: str) -> Result:
        return self.read("--scratch", str(self.scratch), *options)

    @contextmanager
    def held(self, action: Action, *options: str, line: str = FIRST) -> Iterator[subprocess.Popen[str]]:
        """A reader whose transfer hangs; killed at the end."""
        self.hub.fault(line, action, times=1)
        command = self.command("--timeout", "60", *options)
        with subprocess.Popen(command, env=self.environment(), stdout=subprocess.PIPE, text=True) as reader:
            assert self.hub.stalled.wait(20)
            yield reader
            reader.kill()

    def from_folder(self) -> str:
        folder = self.folder / "copy"
        folder.mkdir()
        for name, data in self.hub.files.items():
            (folder / name).write_bytes(bytes(data[:]))
        return str(self.read(source=str(folder)).last["sha256"])
