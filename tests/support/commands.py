"""The `configi` command and the workers of the server, as processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.running import ROOT


def configi(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "server.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=None, timeout=120, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def embedding_worker(cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "server.models.embedded", "smollm2-135m-instruct", str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
