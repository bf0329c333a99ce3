"""The options of `plan`, `build` and `verify` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SourceArgument = Annotated[
    str, typer.Argument(help="A folder, a .gguf file, or a Hub repository with an optional @revision.")
]
OutputArgument = Annotated[Path, typer.Argument(help="The model folder to create.")]
PolicyOption = Annotated[str, typer.Option(help="Name of a policy, or a .toml file with one.")]
MemoryOption = Annotated[
    str | None,
    typer.Option(help="Memory the build may use, such as 3GB.", show_default="3GB, or 8GB to calibrate"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DiscardOption = Annotated[bool, typer.Option("--discard-source", help="Do not keep what was downloaded from the Hub.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Do not contact the Hub; use what is on this machine.")]
CalibrateOption = Annotated[
    str | None,
    typer.Option(
        help="Calibrate, on the text that ships with the project or on yours: a file, or a folder of files.",
        metavar="[DATA]",
        show_default=False,
    ),
]
FitMacOption = Annotated[
    str | None, typer.Option(help="Memory of a Mac, such as 16GB, that is to hold the model.", show_default=False)
]
BpwOption = Annotated[
    float | None, typer.Option(min=2, max=32, help="Bits per weight of the model, spent where they are worth most.")
]
MaxBytesOption = Annotated[
    str | None, typer.Option(help="Size of the model's tensors, such as 10GB, spent where it is worth most.")
]
TimeoutOption = Annotated[float, typer.Option(help="Seconds without data from the Hub before a retry.")]
JsonProgressOption = Annotated[bool, typer.Option("--json-progress", help="Report progress as JSON lines on stdout.")]
WatchOption = Annotated[bool, typer.Option("--watch-stdin", help="Exit when stdin closes.")]
TokensOption = Annotated[
    int | None, typer.Option(min=32, help="Tokens to calibrate on.", show_default="131072 with --calibrate")
]
