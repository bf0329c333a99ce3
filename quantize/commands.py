"""The commands `plan`, `build` and `verify`, and those that evaluate, shared by `configi` and `python -m quantize`.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 usage. Imports are inside the commands: help should not wait
for MLX.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from quantize.errors import QuantizeError
from quantize.evaluate import command as evaluation
from quantize.mlx_lm_alone import import_mlx_lm_alone
from quantize.options import (
    BpwOption,
    CalibrateOption,
    DiscardOption,
    FitMacOption,
    JsonOption,
    JsonProgressOption,
    MaxBytesOption,
    MemoryOption,
    OfflineOption,
    OutputArgument,
    PolicyOption,
    SourceArgument,
    TimeoutOption,
    TokensOption,
    WatchOption,
)

if TYPE_CHECKING:
    from quantize.calibrate.calibration import Calibration
    from quantize.plan.plan import Plan
    from quantize.plan.report import CalibrationNeeds
    from quantize.progress import Progress
    from quantize.source.checkpoint import Checkpoint, HubOptions

# Alone, as the last argument or before another option, it is the shipped text.
_SHIPPED_TEXT = "\0"
# calibration.DEFAULT_TOKENS, which is read only by who calibrates: its module imports MLX.
_TOKENS = 131_072


class _WithCalibrate(TyperCommand):
    """Typer has no option with a value that may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--calibrate" not in args:
            return super().parse_args(ctx, args)
        after = args.index("--calibrate") + 1
        if after == len(args) or args[after].startswith("-"):
            args = [*args[:after], _SHIPPED_TEXT, *args[after:]]
        taken = args[after]
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            # Only a parameter that is missing has a type.
            if taken != _SHIPPED_TEXT and hasattr(error, "param_type"):
                error.message = f"{taken} was taken for the text of --calibrate; for the text that ships it goes last."
            raise


def plan(
    source: SourceArgument,
    policy: PolicyOption = "config-i",
    calibrate: CalibrateOption = None,
    calibration_tokens: TokensOption = None,
    fit_mac: FitMacOption = None,
    memory_limit: MemoryOption = None,
    discard_source: DiscardOption = False,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """Show what a build would produce and need. Reads headers only."""
    from quantize.console import console
    from quantize.plan import report as plan_report
    from quantize.plan.memory import parse_mac, plan_memory
    from quantize.plan.plan import make_plan
    from quantize.printable import print_json
    from quantize.source.checkpoint import HubOptions
    from quantize.source.sources import open_checkpoint

    tokens = _tokens(calibrate, calibration_tokens)
    limit = _memory_limit(memory_limit, calibrates=calibrate is not None)
    memory, mac = plan_memory(limit), parse_mac(fit_mac) if fit_mac else None
    if calibrate is None:
        import_mlx_lm_alone()
    calibration = _calibration(calibrate, tokens)
    hub = HubOptions(keep=calibrate is not None or not discard_source, offline=offline)
    checkpoint = open_checkpoint(source, hub)
    made = make_plan(checkpoint, policy, calibration=calibration.identity if calibration else None)
    needs = _needs(made, calibration, checkpoint, limit) if calibration else None
    if json:
        print_json(plan_report.as_json(made, memory, checkpoint.scratch_bytes, needs, mac))
    else:
        plan_report.print_report(console(), made, memory, checkpoint.scratch_bytes, needs, mac)


def build(
    source: SourceArgument,
    output: OutputArgument,
    policy: PolicyOption = "config-i",
    calibrate: CalibrateOption = None,
    calibration_tokens: TokensOption = None,
    target_bpw: BpwOption = None,
    max_bytes: MaxBytesOption = None,
    fit_mac: FitMacOption = None,
    memory_limit: MemoryOption = None,
    discard_source: DiscardOption = False,
    offline: OfflineOption = False,
    hub_timeout: TimeoutOption = 30,
    json_progress: JsonProgressOption = False,
    watch_stdin: WatchOption = False,
) -> None:
    """Build a quantized MLX model. Run the same command again to resume an interrupted build."""
    if calibrate is None:
        import_mlx_lm_alone()
    from quantize.source.checkpoint import HubOptions
    from quantize.worker import exit_with_parent

    budgets = target_bpw, max_bytes, fit_mac
    if calibrate is None and budgets != (None, None, None):
        raise typer.BadParameter(
            "--target-bpw, --max-bytes and --fit-mac measure losses on text: give --calibrate too."
        )
    if watch_stdin:
        exit_with_parent(sys.stdin.buffer)
    # A calibration reads every layer more than once: what is downloaded for it stays.
    hub = HubOptions(keep=calibrate is not None or not discard_source, offline=offline, timeout_s=hub_timeout)
    tokens = _tokens(calibrate, calibration_tokens)
    wish = _Wish(source, output, policy, memory_limit, hub, calibrate, tokens, *budgets)
    _build_for_programs(wish) if json_progress else _build_for_people(wish)


def _build_for_programs(wish: _Wish) -> None:
    from quantize.worker import JsonLines

    lines = JsonLines(sys.stdout)
    try:
        lines.folder(str(_build(wish, lines)))
    except QuantizeError as error:
        lines.error(error.message, retryable=error.retryable)
        raise


def _build_for_people(wish: _Wish) -> None:
    from quantize.console import console
    from quantize.printable import echo
    from quantize.progress import on_terminal

    try:
        with on_terminal(console(stderr=True)) as progress:
            _build(wish, progress)
    except KeyboardInterrupt:
        echo("Interrupted. Finished work is kept; run the same command to resume.", err=True)
        raise typer.Exit(130) from None
    echo(str(wish.output))


def verify(
    folder: Annotated[Path, typer.Argument(help="A model folder.")],
    json: JsonOption = False,
) -> None:
    """Check a model folder against its manifest and against itself."""
    from quantize.folder.verify import examine
    from quantize.printable import echo, print_json

    found = examine(folder, thorough=True)
    problems = found.problems
    if json:
        report = {"folder": str(folder), "ok": not problems, "problems": problems, "warnings": found.warnings}
        print_json(report)
    else:
        for warning in found.warnings:
            echo(f"Warning: {warning}", err=True)
        for problem in problems:
            echo(problem, err=True)
        if not problems:
            echo(f"{folder} is intact.")
    if problems:
        raise typer.Exit(1)


def add_commands(cli: typer.Typer) -> None:
    """Register the commands on `cli`."""
    for command in (plan, build):
        cli.command(cls=_WithCalibrate)(command)
    cli.command()(verify)
    evaluation.add_commands(cli)


@dataclass(frozen=True, slots=True)
class _Wish:
    """What `build` was asked for; `calibrate` is as given on the command line."""

    source: str
    output: Path
    policy: str
    memory_limit: str | None
    hub: HubOptions
    calibrate: str | None
    tokens: int
    target_bpw: float | None
    max_bytes: str | None
    fit_mac: str | None

    def budget(self, plan: Plan) -> int | None:
        """Bytes of all tensors; the least of the wishes."""
        from quantize.plan.memory import parse_bytes, parse_mac

        wishes = []
        if self.target_bpw is not None:
            wishes.append(int(self.target_bpw * plan.parameters / 8))
        if self.max_bytes is not None:
            wishes.append(parse_bytes(self.max_bytes))
        if self.fit_mac is not None:
            wishes.append(parse_mac(self.fit_mac).tensor_bytes)
        return min(wishes, default=None)


def _build(wish: _Wish, progress: Progress) -> Path:
    from functools import partial

    from quantize.build.build import build as execute
    from quantize.build.output_folder import OutputFolder
    from quantize.build.within_budget import plan_within
    from quantize.calibrate.calibration import allocated, open_source
    from quantize.calibrate.estimate import estimate
    from quantize.plan.plan import make_plan
    from quantize.progress import BuildProgress
    from quantize.source.sources import open_checkpoint

    calibration = _calibration(wish.calibrate, wish.tokens)
    limit = _memory_limit(wish.memory_limit, calibrates=calibration is not None)
    reported = BuildProgress(progress)
    output = OutputFolder(wish.output)
    hub = replace(wish.hub, scratch=output.work / "source", on_wait=reported.waiting_for)
    checkpoint = open_checkpoint(wish.source, hub)
    if calibration is None:
        made = make_plan(checkpoint, wish.policy)
        return execute(checkpoint, made, wish.output, memory_limit=limit, progress=reported)
    model = open_source(wish.source, hub)
    made = make_plan(checkpoint, wish.policy, calibration=calibration.identity)
    estimate(made, wish.tokens).check(limit)
    if (budget := wish.budget(made)) is not None:
        files = checkpoint.auxiliary_files()
        measured = partial(allocated, calibration, budget, model=model, auxiliary=files, progress=reported)
        made = plan_within(budget, made, output, measured, partial(make_plan, checkpoint, wish.policy))
    return execute(
        checkpoint,
        made,
        wish.output,
        memory_limit=limit,
        progress=reported,
        calibrate=partial(calibration.run, model),
        calibration_bytes=lambda files: estimate(made, calibration.held(made, files)).disk_bytes,
    )


def _tokens(calibrate: str | None, wish: int | None) -> int:
    if wish is not None and calibrate is None:
        raise typer.BadParameter("--calibration-tokens says how much text to calibrate on: give --calibrate too.")
    return _TOKENS if wish is None else wish


def _memory_limit(wish: str | None, *, calibrates: bool) -> int:
    from quantize.plan.memory import parse_bytes

    return parse_bytes(wish or ("8GB" if calibrates else "3GB"))


def _needs(made: Plan, calibration: Calibration, checkpoint: Checkpoint, limit: int) -> CalibrationNeeds:
    from quantize.calibrate.estimate import estimate
    from quantize.plan.report import CalibrationNeeds

    tokens = calibration.held(made, checkpoint.auxiliary_files())
    found = estimate(made, tokens)
    return CalibrationNeeds(tokens, found.memory_bytes, limit, found.disk_bytes, found.seconds)


def _calibration(data: str | None, tokens: int) -> Calibration | None:
    from quantize.calibrate.calibration import read_calibration
    from quantize.calibrate.overlap import shared_runs
    from quantize.evaluate.texts import OWN, read_texts

    if data is None:
        return None
    if not data:
        raise QuantizeError("--calibrate was given an empty name; for the text that ships leave it out.")
    made = read_calibration(None if data == _SHIPPED_TEXT else Path(data).expanduser(), tokens)
    judged = [text.whole for text in read_texts(OWN)]
    if shared := shared_runs(judged, [document.whole for document in made.text.documents]):
        raise QuantizeError(f"The calibration text holds text that `eval` judges on: {shared[0]!r}.")
    return made
