"""`python -m quantize`: the builder by itself, without the server."""

from __future__ import annotations

import typer

from quantize.commands import add_commands
from quantize.errors import QuantizeError
from quantize.outcome import run

cli = typer.Typer(
    name="quantize", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
add_commands(cli)


def main() -> None:
    run("quantize", cli, (QuantizeError,))


if __name__ == "__main__":
    main()
