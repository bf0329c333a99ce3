"""Where `configi` begins: Ctrl-C while it is still importing ends it without a traceback too."""

from __future__ import annotations


def main() -> None:
    try:
        from server.cli.main import main as run_command

        run_command()
    except KeyboardInterrupt:
        # The status that a shell gives to what SIGINT has ended.
        raise SystemExit(130) from None
