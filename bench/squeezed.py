"""configi on a machine that is short of memory whenever a file says so: `python -m bench.squeezed serve CONFIG FILE`.

Only a Mac says how short of memory it is. FILE holds what one would say (1: normal, 2: warning, 4: critical); nothing
else differs from `configi serve`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from quantize.mlx_lm_alone import import_mlx_lm_alone


def program(config: Path, said: Path) -> list[str]:
    """The module and its arguments."""
    return ["bench.squeezed", "serve", str(config), str(said)]


def serve(config: Path, said: Path) -> None:
    # Here, not above: the engine process imports none of this.
    from server import logs
    from server.app import create_app
    from server.http import listen
    from server.settings.loading import load_settings

    settings = load_settings(config, {})
    logs.configure(settings.log)
    sockets = listen.bind(settings.server)
    print(f"on http://127.0.0.1:{sockets[0].getsockname()[1]}", flush=True)
    command = (sys.executable, "-m", "bench.squeezed", "engine", str(said))
    configi = create_app(settings, engine_command=command)
    listen.run(configi.asgi, sockets, settings.server, configi.generation.drain, configi.generation.end)


def engine(said: Path, address: str) -> None:
    """The real engine process, which looks as often as it does on a Mac."""
    import_mlx_lm_alone()
    from server.engine import process
    from server.engine.device.pressure import pressure

    vars(process).update(pressure=lambda: pressure(lambda: int(said.read_text())), is_watched=lambda: True)
    sys.argv = ["engine", address]
    process.main()


def main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["serve", config, said]:
            serve(Path(config), Path(said))
        case ["engine", said, address]:
            engine(Path(said), address)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
