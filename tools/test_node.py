"""`make test-node`: starts a demo server on a free port and runs tests/node against it with the OpenAI Node SDK."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.running import running

_NODE = Path(__file__).parent.parent / "tests" / "node"


def main() -> int:
    subprocess.run(
        ["npm", "install", "--silent", "--no-package-lock", "--no-audit", "--no-fund"], cwd=_NODE, check=True
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        running(["-m", "server.cli", "demo", "--port", "0"], Path(folder)) as server,
    ):
        server.assert_still_serves()
        environment = {**os.environ, "BASE_URL": server.url}
        return subprocess.run(["node", "--test", "sdk.test.mjs"], cwd=_NODE, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
