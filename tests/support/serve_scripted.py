"""`configi serve` with a scripted engine: python -m tests.support.serve_scripted CONFIG [options of the engine]."""

from __future__ import annotations

import sys
from pathlib import Path

from server import logs
from server.app import create_app
from server.http import listen
from server.settings.loading import load_settings


def main() -> None:
    config, *script = sys.argv[1:]
    settings = load_settings(Path(config), {})
    logs.configure(settings.log)
    sockets = listen.bind(settings.server)
    print(f"on http://127.0.0.1:{sockets[0].getsockname()[1]}", flush=True)
    configi = create_app(settings, engine_command=(sys.executable, "-m", "tests.support.scripted_engine", *script))
    listen.run(configi.asgi, sockets, settings.server, configi.generation.drain, configi.generation.end)


if __name__ == "__main__":
    main()
