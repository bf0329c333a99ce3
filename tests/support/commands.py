"""The `configi` command and the workers of the server, as processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support import forked
from tests.support.running import ROOT


def configi(
    *arguments: str, check: bool = True, cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = forked.run("server.cli.main", *arguments, cwd=cwd, environment=os.environ | environment)
    assert not check or done.returncode == 0, done.stderr
    return done


def embedding_worker(cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "server.models.embedded", "smollm2-135m-instruct", str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True)
