"""The fetch worker as a process, on a Hub on loopback, with the real huggingface_hub."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import forked
from tests.support.loopback_hub import (
    REPO,
    LoopbackHub,
    hub_environment,
)

WANTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


@dataclass
class Result:
    code: int
    progress: list[dict[str, Any]]
    last: dict[str, Any]
    stderr: str

    @property
    def message(self) -> str:
        return str(self.last["error"]["message"])


@dataclass
class Bench:
    hub: LoopbackHub
    home: Path

    @property
    def storage(self) -> Path:
        return self.home / "hub" / f"models--{REPO.replace('/', '--')}"

    def fetch(self, source: str = REPO, *options: str, **environment: str) -> Result:
        done = forked.run(
            "server.models.fetch", source, "--timeout", "5", "--backoff", "0.05", *options,
            environment={**os.environ, **hub_environment(self.hub, self.home), **environment},
            timeout=60,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        return Result(done.returncode, lines[:-1], lines[-1], done.stderr)
