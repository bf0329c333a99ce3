"""`configi eval` and `configi eval-endpoint`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quantize.options import JsonOption, OfflineOption

if TYPE_CHECKING:
    from quantize.evaluate.evaluate import Wishes
    from quantize.evaluate.evaluation import Evaluation
    from quantize.evaluate.tasks.counted import EvaluationProgress

FolderArgument = Annotated[Path, typer.Argument(help="The MLX model folder to judge.")]
ReferenceOption = Annotated[
    str, typer.Option(help="What to measure against: a folder, a .gguf file, a Hub repository.")
]
TextOption = Annotated[
    list[Path] | None, typer.Option(help="Text to judge on instead of the project's own; may be given again.")
]
CoveredOption = Annotated[
    str | None,
    typer.Option(
        help="Kinds of text that the calibration held, with commas between.", show_default="what configi.json says"
    ),
]
CalibratedOnOption = Annotated[
    Path | None, typer.Option(help="Your own text that it was calibrated on, to look for any of it in the text.")
]
LengthOption = Annotated[int, typer.Option(min=32, help="Tokens of a passage.")]
PassagesOption = Annotated[int | None, typer.Option(min=1, help="Passages at most.", show_default="all")]
LoopsOption = Annotated[int, typer.Option(min=0, help="Tokens of the replies searched for loops; 0: none.")]
MmluOption = Annotated[
    list[str] | None,
    typer.Option(help="A file of questions, or a data set of the Hub such as cais/mmlu; may be given again."),
]
MmluLimitOption = Annotated[
    int | None, typer.Option(min=1, help="Questions of each subject at most.", show_default="all")
]
NeedlesOption = Annotated[int, typer.Option(min=0, help="Tries for each cell of needle in a haystack.")]
ReferenceNeedlesOption = Annotated[bool, typer.Option("--reference-needles", help="The reference's too.")]
ComputedOption = Annotated[
    bool | None,
    typer.Option("--float32/--as-stored", help="How both are computed.", show_default="float32 on a CPU"),
]
StatesOption = Annotated[
    Path | None, typer.Option(help="Folder where the reference's hidden states are kept for a next time.")
]
ReportOption = Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")]
PlotsOption = Annotated[bool, typer.Option("--plots", help="Pictures beside the report; needs matplotlib.")]
CardOption = Annotated[bool, typer.Option("--card", help="Put the result into the model's README.md.")]


def evaluate(
    folder: FolderArgument,
    reference: ReferenceOption,
    text: TextOption = None,
    covered: CoveredOption = None,
    calibrated_on: CalibratedOnOption = None,
    length: LengthOption = 512,
    passages: PassagesOption = None,
    generate: LoopsOption = 2500,
    mmlu: MmluOption = None,
    mmlu_limit: MmluLimitOption = None,
    needles: NeedlesOption = 0,
    reference_needles: ReferenceNeedlesOption = False,
    float32: ComputedOption = None,
    states: StatesOption = None,
    report: ReportOption = None,
    plots: PlotsOption = False,
    card: CardOption = False,
    offline: OfflineOption = False,
    json: JsonOption = False,
) -> None:
    """Measure how far a model is from its reference. Both are streamed layer by layer: neither must fit into memory."""
    from quantize.evaluate.evaluate import Wishes
    from quantize.evaluate.tasks.questions import read_all
    from quantize.source.checkpoint import HubOptions

    _before_the_work(report, plots=plots, needles=needles, reference_needles=reference_needles)
    wishes = Wishes(
        texts=text or (),
        length=length,
        most_passages=passages,
        covered=[kind.strip() for kind in covered.split(",")] if covered else None,
        calibrated_on=calibrated_on,
        float32=float32,
        states=states,
        generate=generate,
        questions=read_all(mmlu or (), offline=offline),
        most_questions=mmlu_limit,
        needles=needles,
        reference_needles=reference_needles,
        hub=HubOptions(offline=offline),
    )
    found = _measured(folder, reference, wishes)
    _show(found, json=json)
    _write(found, folder if card else None, report, plots=plots)


def _before_the_work(report: Path | None, *, plots: bool, needles: int, reference_needles: bool) -> None:
    """What would fail at its end, hours later."""
    from quantize.evaluate.plots import check_plots

    if plots and report is None:
        raise typer.BadParameter("--plots needs --report, where the pictures go.")
    if reference_needles and not needles:
        raise typer.BadParameter("--reference-needles needs --needles, how many tries to make.")
    if report is not None:
        with _writing("The report"):
            report.mkdir(parents=True, exist_ok=True)
    if plots:
        check_plots()


def _measured(folder: Path, reference: str, wishes: Wishes) -> Evaluation:
    from quantize.evaluate import evaluate as steps

    with _progress() as told:
        return steps.evaluate(folder, reference, wishes, told)


@contextlib.contextmanager
def _progress() -> Iterator[EvaluationProgress]:
    from quantize.console import console

    with console(stderr=True).status("reading") as status:
        yield lambda what, done, total: status.update(f"{what}: {done} of {total}")


def _show(found: Evaluation, *, json: bool) -> None:
    from quantize.evaluate.evaluation import as_json
    from quantize.evaluate.report import markdown
    from quantize.printable import echo

    shown = as_json(found) if json else markdown(found)
    echo(shown.rstrip("\n"), limit=len(shown))


def _write(found: Evaluation, card_of: Path | None, report: Path | None, *, plots: bool) -> None:
    """After it was shown: a disk that is full by now costs no figure."""
    from quantize.evaluate.report import card_section
    from quantize.evaluate.written import put_into_card, write_report

    if report is not None:
        with _writing("The report"):
            write_report(found, report, plots=plots)
    if card_of is not None:
        with _writing("The model card"):
            put_into_card(card_of, card_section(found))


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    from quantize.errors import OutputError, reason_of

    try:
        yield
    except OSError as error:
        raise OutputError(f"{what} cannot be written: {reason_of(error)}.") from error


def evaluate_endpoint(
    url: Annotated[str, typer.Argument(help="An OpenAI-compatible endpoint, up to and with /v1.")],
    model: Annotated[str, typer.Option(help="The model to ask for.")],
    tools: Annotated[bool, typer.Option("--tools/--no-tools", help="The rate of valid tool calls.")] = True,
    mmlu: MmluOption = None,
    mmlu_limit: MmluLimitOption = None,
    needles: NeedlesOption = 0,
    generate: Annotated[int, typer.Option(min=0, help="Tokens of the reply that is timed; 0: none.")] = 256,
    key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="The endpoint's API key.")] = None,
    json: JsonOption = False,
) -> None:
    """Measure a served model by what needs no logits: tool calls, questions, needles, speed."""
    import msgspec

    from quantize.evaluate import endpoint
    from quantize.evaluate.tasks.questions import read_all
    from quantize.printable import echo

    questions = read_all(mmlu or ())
    if not (tools or questions or needles or generate):
        raise typer.BadParameter("--no-tools and --generate 0 leave nothing to measure: add --mmlu or --needles.")
    asked = endpoint.Endpoint(url, model, key)
    with _progress() as told:
        found = endpoint.evaluate_endpoint(
            asked,
            tools=tools,
            questions=questions,
            needles=needles,
            generate=generate,
            most_questions=mmlu_limit,
            told=told,
        )
    shown = msgspec.json.format(msgspec.json.encode(found), indent=1).decode() if json else None
    echo(shown or "\n".join(endpoint.lines(found)))
    if found.failed is not None:
        raise endpoint.EndpointError(found.failed)


def add_commands(cli: typer.Typer) -> None:
    cli.command("eval")(evaluate)
    cli.command("eval-endpoint")(evaluate_endpoint)
