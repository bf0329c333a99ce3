"""The real engine process without a parent."""

from __future__ import annotations

import subprocess
from pathlib import Path

from server.engine_client.supervisor import ENGINE_COMMAND
from tests.support.running import ROOT


def test_an_engine_whose_parent_is_gone_ends_as_the_workers_do(tmp_path: Path) -> None:
    command = [*ENGINE_COMMAND, f"ipc://{tmp_path}/engine"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as engine:
        _, errors = engine.communicate(timeout=60)
    assert (engine.returncode, errors) == (1, b"")
