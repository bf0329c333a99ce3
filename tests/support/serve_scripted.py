"""`configi serve` with a scripted engine: python -m tests.support.serve_scripted CONFIG [options of the engine].

`--record FILE` writes down what was asked and told. `--real`: the engine is the real one.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server import logs
from server.app import create_app
from server.engine_client.supervisor import ENGINE_COMMAND
from server.http import listen
from server.models import awake
from server.settings.loading import load_settings
from tests.support.recorded import Recorded


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("config", type=Path)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--real", action="store_true")
    # In the place of what keeps a Mac awake.
    parser.add_argument("--awake", type=shlex.split)
    given, script = parser.parse_known_args(arguments)
    if given.awake is not None:
        awake.command = lambda: given.awake
    settings = load_settings(given.config, {})
    logs.configure(settings.log)
    sockets = listen.bind(settings.server)
    print(f"on http://127.0.0.1:{sockets[0].getsockname()[1]}", flush=True)
    scripted = (sys.executable, "-m", "tests.support.scripted_engine", *script)
    configi = create_app(settings, engine_command=ENGINE_COMMAND if given.real else scripted)
    app: Any = Recorded(configi.asgi, given.record) if given.record else configi.asgi
    listen.run(app, sockets, settings.server, configi.generation.drain, configi.generation.end)


if __name__ == "__main__":
    main()
