"""`make test-node`: starts a demo server on a free port and runs tests/node against it with the OpenAI Node SDK."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.running import running

_KEY = "key-of-the-test"
_NODE = Path(__file__).parent.parent / "tests" / "node"


def main() -> int:
    subprocess.run(
        ["npm", "install", "--silent", "--no-package-lock", "--no-audit", "--no-fund"], cwd=_NODE, check=True
    )
    # A key, and four places and no queue, so that the errors that follow from them can be provoked.
    os.environ |= {
        "CONFIGI_SERVER__API_KEY": _KEY,
        "CONFIGI_ENGINE__MAX_CONCURRENT": "4",
        "CONFIGI_ENGINE__QUEUE_LIMIT": "0",
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        running(["-m", "server.cli", "demo", "--port", "0"], Path(folder)) as server,
    ):
        environment = {**os.environ, "BASE_URL": server.url, "API_KEY": _KEY}
        return subprocess.run(["node", "--test", "sdk.test.mjs"], cwd=_NODE, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
