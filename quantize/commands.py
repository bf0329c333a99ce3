"""The commands `plan`, `build` and `verify`, shared by `configi` and `python -m quantize`.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 usage. Imports are inside the commands: help should not wait
for MLX.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantize.errors import QuantizeError
from quantize.evaluate import command as evaluation

if TYPE_CHECKING:
    from quantize.progress import Progress
    from quantize.source.checkpoint import HubOptions

SourceArgument = Annotated[
    str, typer.Argument(help="A folder, a .gguf file, or a Hub repository with an optional @revision.")
]
PolicyOption = Annotated[str, typer.Option(help="Name of a policy, or a .toml file with one.")]
MemoryOption = Annotated[str, typer.Option(help="Memory the build may use, such as 3GB.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DiscardOption = Annotated[bool, typer.Option("--discard-source", help="Do not keep what was downloaded from the Hub.")]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Do not contact the Hub; use what is on this machine.")]


def plan(
    source: SourceArgument,
    policy: PolicyOption = "config-i",
    memory_limit: MemoryOption = "3GB",
    discard_source: DiscardOption = False,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """Show what a build would produce and need. Reads headers only."""
    from quantize.console import console
    from quantize.plan import report as plan_report
    from quantize.plan.memory import parse_bytes, plan_memory
    from quantize.plan.plan import make_plan
    from quantize.printable import print_json
    from quantize.source.checkpoint import HubOptions
    from quantize.source.sources import open_checkpoint

    memory = plan_memory(parse_bytes(memory_limit))
    checkpoint = open_checkpoint(source, HubOptions(keep=not discard_source, offline=offline))
    made = make_plan(checkpoint, policy)
    if json:
        print_json(plan_report.as_json(made, memory, checkpoint.scratch_bytes))
    else:
        plan_report.print_report(console(), made, memory, checkpoint.scratch_bytes)


def build(
    source: SourceArgument,
    output: Annotated[Path, typer.Argument(help="The model folder to create.")],
    policy: PolicyOption = "config-i",
    memory_limit: MemoryOption = "3GB",
    discard_source: DiscardOption = False,
    offline: OfflineOption = False,
    hub_timeout: Annotated[float, typer.Option(help="Seconds without data from the Hub before a retry.")] = 30,
    json_progress: Annotated[
        bool, typer.Option("--json-progress", help="Report progress as JSON lines on stdout.")
    ] = False,
    watch_stdin: Annotated[bool, typer.Option("--watch-stdin", help="Exit when stdin closes.")] = False,
) -> None:
    """Build a quantized MLX model. Run the same command again to resume an interrupted build."""
    from quantize.console import console
    from quantize.printable import echo
    from quantize.progress import on_terminal
    from quantize.source.checkpoint import HubOptions
    from quantize.worker import JsonLines, exit_with_parent

    if watch_stdin:
        exit_with_parent(sys.stdin.buffer)
    hub = HubOptions(keep=not discard_source, offline=offline, timeout_s=hub_timeout)
    if json_progress:
        lines = JsonLines(sys.stdout)
        try:
            lines.folder(str(_build(source, output, policy, memory_limit, hub, lines)))
        except QuantizeError as error:
            lines.error(error.message, retryable=error.retryable)
            raise
        return
    try:
        with on_terminal(console(stderr=True)) as progress:
            _build(source, output, policy, memory_limit, hub, progress)
    except KeyboardInterrupt:
        echo("Interrupted. Finished work is kept; run the same command to resume.", err=True)
        raise typer.Exit(130) from None
    echo(str(output))


def verify(
    folder: Annotated[Path, typer.Argument(help="A model folder.")],
    json: JsonOption = False,
) -> None:
    """Check a model folder against its manifest and against itself."""
    from quantize.folder.verify import verify as check
    from quantize.printable import echo, print_json

    problems = check(folder)
    if json:
        print_json({"folder": str(folder), "ok": not problems, "problems": problems})
    else:
        for problem in problems:
            echo(problem, err=True)
        if not problems:
            echo(f"{folder} is intact.")
    if problems:
        raise typer.Exit(1)


def add_commands(cli: typer.Typer) -> None:
    """Register the three commands on `cli`."""
    for command in (plan, build, verify):
        cli.command()(command)
    evaluation.add_commands(cli)


def _build(source: str, output: Path, policy: str, memory_limit: str, hub: HubOptions, progress: Progress) -> Path:
    from quantize.build.build import build as execute
    from quantize.build.output_folder import OutputFolder
    from quantize.plan.memory import parse_bytes
    from quantize.plan.plan import make_plan
    from quantize.progress import BuildProgress
    from quantize.source.sources import open_checkpoint

    limit = parse_bytes(memory_limit)
    reported = BuildProgress(progress)
    scratch = OutputFolder(output).work / "source"
    checkpoint = open_checkpoint(source, replace(hub, scratch=scratch, on_wait=reported.waiting_for))
    return execute(checkpoint, make_plan(checkpoint, policy), output, memory_limit=limit, progress=reported)
