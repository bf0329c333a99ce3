"""`configi eval`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    folder: Annotated[Path, typer.Argument(help="The MLX model folder to judge.")],
    reference: Annotated[str, typer.Option(help="What to measure against: a folder, a .gguf file, a Hub repository.")],
    text: Annotated[
        list[Path] | None, typer.Option(help="Text to judge on instead of the project's own; may be given again.")
    ] = None,
    covered: Annotated[
        str | None,
        typer.Option(
            help="Kinds of text that the calibration held, with commas between.", show_default="what configi.json says"
        ),
    ] = None,
    calibrated_on: Annotated[
        Path | None, typer.Option(help="Your own text that it was calibrated on, to look for any of it in the text.")
    ] = None,
    length: Annotated[int, typer.Option(min=32, help="Tokens of a passage.")] = 512,
    passages: Annotated[int | None, typer.Option(min=1, help="Passages at most.", show_default="all")] = None,
    generate: Annotated[int, typer.Option(min=0, help="Tokens of the replies searched for loops; 0: none.")] = 2500,
    mmlu: Annotated[list[Path] | None, typer.Option(help="A file of questions; may be given again.")] = None,
    needles: Annotated[int, typer.Option(min=0, help="Tries for each cell of needle in a haystack.")] = 0,
    reference_needles: Annotated[bool, typer.Option("--reference-needles", help="The reference's too.")] = False,
    float32: Annotated[
        bool | None,
        typer.Option("--float32/--as-stored", help="How both are computed.", show_default="float32 on a CPU"),
    ] = None,
    states: Annotated[
        Path | None, typer.Option(help="Folder where the reference's hidden states are kept for a next time.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder for report.json and report.md.")] = None,
    plots: Annotated[bool, typer.Option("--plots", help="Pictures beside the report; needs matplotlib.")] = False,
    card: Annotated[bool, typer.Option("--card", help="Put the result into the model's README.md.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no Hub.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Measure how far a model is from its reference. Both are streamed layer by layer: neither must fit into memory."""
    from quantize.console import console
    from quantize.evaluate import evaluate as steps
    from quantize.evaluate.evaluation import as_json
    from quantize.evaluate.plots import check_plots
    from quantize.evaluate.report import card_section, markdown
    from quantize.evaluate.tasks.mmlu import read_questions
    from quantize.evaluate.written import put_into_card, write_report
    from quantize.printable import echo
    from quantize.source.checkpoint import HubOptions

    if plots and report is None:
        raise typer.BadParameter("--plots needs --report, the folder to put them in.")
    if reference_needles and not needles:
        raise typer.BadParameter("--reference-needles needs --needles, how many tries to make.")
    # Before the hours of work that would be lost.
    if report is not None:
        with _writing("The report"):
            report.mkdir(parents=True, exist_ok=True)
    if plots:
        check_plots()
    wishes = steps.Wishes(
        texts=text or (),
        length=length,
        most_passages=passages,
        covered=[kind.strip() for kind in covered.split(",")] if covered else None,
        calibrated_on=calibrated_on,
        float32=float32,
        states=states,
        generate=generate,
        questions=[question for file in mmlu or () for question in read_questions(file)],
        needles=needles,
        reference_needles=reference_needles,
        hub=HubOptions(offline=offline),
    )
    with console(stderr=True).status("reading") as status:
        found = steps.evaluate(folder, reference, wishes, lambda what, n, of: status.update(f"{what}: {n} of {of}"))
    if report is not None:
        with _writing("The report"):
            write_report(found, report, plots=plots)
    if card:
        with _writing("The model card"):
            put_into_card(folder, card_section(found))
    shown = as_json(found) if json else markdown(found)
    echo(shown.rstrip("\n"), limit=len(shown))


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
    mmlu: Annotated[list[Path] | None, typer.Option(help="A file of questions; may be given again.")] = None,
    needles: Annotated[int, typer.Option(min=0, help="Tries for each cell of needle in a haystack.")] = 0,
    generate: Annotated[int, typer.Option(min=0, help="Tokens of the reply that is timed; 0: none.")] = 256,
    key: Annotated[str | None, typer.Option(envvar="OPENAI_API_KEY", help="The endpoint's API key.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Machine-readable output.")] = False,
) -> None:
    """Measure a served model by what needs no logits: tool calls, questions, needles, speed."""
    import msgspec

    from quantize.evaluate import endpoint
    from quantize.evaluate.tasks.mmlu import read_questions
    from quantize.printable import echo

    questions = [question for file in mmlu or () for question in read_questions(file)]
    if not (tools or questions or needles or generate):
        raise typer.BadParameter("--no-tools and --generate 0 leave nothing to measure: add --mmlu or --needles.")
    asked = endpoint.Endpoint(url, model, key)
    found = endpoint.evaluate_endpoint(asked, tools=tools, questions=questions, needles=needles, generate=generate)
    shown = msgspec.json.format(msgspec.json.encode(found), indent=1).decode() if json else None
    echo(shown or "\n".join(endpoint.lines(found)))


def add_commands(cli: typer.Typer) -> None:
    cli.command("eval")(evaluate)
    cli.command("eval-endpoint")(evaluate_endpoint)
