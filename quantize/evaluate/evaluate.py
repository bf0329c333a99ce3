"""`configi eval`: the steps of an evaluation, from a model folder and a source to an `Evaluation`."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import msgspec
import numpy as np
from filelock import FileLock, Timeout

from quantize.calibrate.corpus import calibration_text
from quantize.calibrate.overlap import shared_runs
from quantize.errors import SourceError, output_error
from quantize.evaluate.divergence import TokenFigures, joined
from quantize.evaluate.evaluation import NOT_MEASURED, Evaluation, Generated, Histogram, Protocol
from quantize.evaluate.generation import Generator
from quantize.evaluate.measure import measure, state_key
from quantize.evaluate.same_tokens import check_same_tokens
from quantize.evaluate.summary import summarize
from quantize.evaluate.tasks import mmlu, niah, tool_calls
from quantize.evaluate.tasks.counted import EvaluationProgress, counted
from quantize.evaluate.tasks.mmlu import Score
from quantize.evaluate.tasks.questions import Question
from quantize.evaluate.texts import COVERED, OWN, Passage, Text, passages, read_texts
from quantize.folder.manifest import TextSummary, read_manifest
from quantize.forward.models import LazyModel, open_model
from quantize.forward.store import InFolder, InMemory, Store
from quantize.forward.tokenizer import tokenizer_in
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import check_name

_EDGES = np.logspace(-8, 2, 41)
_PROMPTS = (
    "Tell a long story about a lighthouse keeper who finds a letter in a bottle.",
    "Explain step by step how a bicycle stays upright, and list common misconceptions.",
)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What to measure. `covered`: None takes the model's word for it. `length`: tokens of a passage. `calibrated_on`:
    the user's own text that the model was calibrated on.

    `states`: where the reference's hidden states are kept. `generate`: tokens of each greedy reply, 0 for none.
    `needles`: tries a cell, 0 for none. `most_questions`: of each subject.
    """

    texts: Sequence[Path] = ()
    length: int = 512
    most_passages: int | None = None
    covered: Sequence[str] | None = None
    calibrated_on: Path | None = None
    float32: bool | None = None
    states: Path | None = None
    generate: int = 0
    questions: Sequence[Question] = ()
    most_questions: int | None = None
    needles: int = 0
    needle_lengths: Sequence[int] = niah.LENGTHS
    reference_needles: bool = False
    hub: HubOptions = field(default_factory=HubOptions)


def evaluate(
    folder: Path, reference: str, wishes: Wishes, told: EvaluationProgress = lambda what, done, total: None
) -> Evaluation:
    """Raises SourceError: what is given cannot be read, or the two models cannot be compared."""
    # What was mistyped is said before mlx-lm is imported, which takes a second.
    if not (folder / "config.json").is_file():
        raise SourceError(f"{folder} has no config.json, so it is not an MLX model.")
    check_name(reference)
    mmlu.check_questions(wishes.questions)
    if wishes.reference_needles and not Path(reference).expanduser().is_dir():
        raise SourceError("The reference's needles need the reference as a folder that mlx-lm loads into memory.")
    calibration = _calibration(folder)
    texts = [text for file in wishes.texts or (OWN,) for text in read_texts(file)]
    covered = wishes.covered or (COVERED if calibration is None else list(calibration.kinds))
    overlap = _overlap(texts, calibration, wishes.calibrated_on)
    kinds = {text.kind for text in texts}
    if unknown := sorted(set(wishes.covered or ()) - kinds):
        raise SourceError(f"No text is of the kind {unknown[0]}; there are {', '.join(sorted(kinds))}.")
    tokenizer = tokenizer_in(folder, folder.name)
    found = _chosen(passages(texts, tokenizer, wishes.length), wishes.most_passages)
    if not found:
        raise SourceError("The text has no answer that is long enough to be judged on.")
    check_same_tokens(found, tokenizer, reference, wishes.hub)
    # MLX's CPU backend has no experts in bfloat16, and float32 is what it computes fastest.
    float32 = wishes.float32 if wishes.float32 is not None else mx.default_device() == mx.Device(mx.cpu)
    label, by_kind = _streamed(folder, reference, wishes, found, float32=float32, told=told)
    evaluation = Evaluation(
        model=folder.resolve().name,
        reference=label,
        protocol=_protocol(found, wishes.length, covered, float32, calibration is not None, overlap),
        groups={name: summarize(parts) for name, parts in _groups(by_kind, covered).items()},
        kinds={kind: summarize(parts) for kind, parts in by_kind.items()},
        histogram={name: _histogram(joined(parts)) for name, parts in _groups(by_kind, covered).items()},
    )
    # One after the other is in memory, or the peak of one would hold the other.
    if wishes.generate or wishes.questions or wishes.needles:
        evaluation = _asked(Generator(folder), evaluation, wishes, told)
    if wishes.reference_needles:
        cells = _needles(Generator(Path(reference).expanduser()), wishes, told)
        evaluation = msgspec.structs.replace(evaluation, reference_needles=cells)
    return evaluation


def _streamed(
    folder: Path,
    reference: str,
    wishes: Wishes,
    found: Sequence[Passage],
    *,
    float32: bool,
    told: EvaluationProgress,
) -> tuple[str, Mapping[str, list[TokenFigures]]]:
    """The reference's name, and the figures by kind. States that are kept in memory are gone when it returns."""
    source = open_model(reference, wishes.hub, float32=float32)
    model = open_model(str(folder), wishes.hub, float32=float32)
    with _states(wishes.states, source, found, told) as states:
        return source.label, measure(source, model, found, states=states, told=told)


def _asked(generator: Generator, evaluation: Evaluation, wishes: Wishes, told: EvaluationProgress) -> Evaluation:
    """`evaluation` with what needs the model in memory."""
    letters, chat = _mmlu(generator, wishes, told) if wishes.questions else (None, None)
    return msgspec.structs.replace(
        evaluation,
        generated=_generated(generator, wishes.generate, told) if wishes.generate else None,
        mmlu_letters=letters,
        mmlu_chat=chat,
        needles=_needles(generator, wishes, told) if wishes.needles else None,
        tool_calls=_tool_calls(generator, told) if wishes.generate else NOT_MEASURED,
    )


@contextlib.contextmanager
def _states(
    folder: Path | None, reference: LazyModel, found: Sequence[Passage], told: EvaluationProgress
) -> Iterator[Store]:
    """Where those of the reference are kept."""
    if folder is None:
        yield InMemory()
        return
    kept = folder / state_key(reference, found)
    try:
        kept.mkdir(parents=True, exist_ok=True)
        with _alone(kept / "lock", told):
            yield InFolder(kept)
    except OSError as error:
        raise output_error(error, f"Keeping states in {folder}") from error


@contextlib.contextmanager
def _alone(file: Path, told: EvaluationProgress) -> Iterator[None]:
    """Another evaluation of the same reference would drop what this one still needs."""
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        told("waiting for another evaluation with these states", 0, 1)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _chosen(found: list[Passage], most: int | None) -> list[Passage]:
    """As many of each kind as of any other, where there are too many."""
    if most is None or len(found) <= most:
        return found
    turn: dict[str, int] = {}
    order = []
    for passage in found:
        turn[passage.kind] = turn.get(passage.kind, 0) + 1
        order.append((turn[passage.kind], passage))
    return [passage for _, passage in sorted(order, key=lambda item: item[0])[:most]]


def _groups(by_kind: Mapping[str, list[TokenFigures]], covered: Sequence[str]) -> dict[str, list[TokenFigures]]:
    groups: dict[str, list[TokenFigures]] = {"covered": [], "uncovered": [], "all": []}
    for kind, parts in by_kind.items():
        groups["covered" if kind in covered else "uncovered"] += parts
        groups["all"] += parts
    return {name: parts for name, parts in groups.items() if parts}


def _histogram(tokens: TokenFigures) -> Histogram:
    counts, _ = np.histogram(np.clip(tokens.kl, _EDGES[0], _EDGES[-1]), _EDGES)
    return Histogram([float(edge) for edge in _EDGES], [float(count) for count in counts / max(1, len(tokens))])


def _calibration(folder: Path) -> TextSummary | None:
    manifest = read_manifest(folder)
    return manifest.calibration if manifest else None


def _overlap(texts: Sequence[Text], calibration: TextSummary | None, data: Path | None) -> int | None:
    """`data`: the user's own text that the model was calibrated on; of that, the model has only the hash."""
    if calibration is None:
        if data is not None:
            raise SourceError("The model was not calibrated, by what its folder says.")
        return None
    calibrated_on = calibration_text(data)
    if calibration.sha256 != calibrated_on.sha256:
        if data is not None:
            raise SourceError(f"{data} is not the text that the model was calibrated on.")
        return None
    return len(shared_runs([text.whole for text in texts], [document.whole for document in calibrated_on.documents]))


def _protocol(
    found: Sequence[Passage],
    length: int,
    covered: Sequence[str],
    float32: bool,
    calibrated: bool,
    overlap: int | None,
) -> Protocol:
    ids = json.dumps([[passage.kind, list(passage.tokens), passage.given] for passage in found])
    return Protocol(
        computed="float32, dequantized" if float32 else "as stored",
        text=hashlib.sha256(ids.encode()).hexdigest(),
        passage_tokens=length,
        covered=[kind for kind in dict.fromkeys(passage.kind for passage in found) if kind in covered],
        made_with={package: version(package) for package in ("configi-mlx", "mlx", "mlx-lm")},
        calibrated=calibrated,
        shared_with_calibration=overlap,
    )


def _generated(generator: Generator, most: int, told: EvaluationProgress) -> list[Generated]:
    found = []
    for number, prompt in enumerate(_PROMPTS, start=1):
        run = generator.run(generator.encode([{"role": "user", "content": prompt}]), most)
        found.append(Generated(prompt, len(run.tokens), run.ended, run.loop, run.speed))
        told("generating", number, len(_PROMPTS))
    return found


def _tool_calls(generator: Generator, told: EvaluationProgress) -> str:
    if not generator.calls_tools:
        return f"{NOT_MEASURED}: mlx-lm knows no form of them for this model's template"
    calls = counted(generator.calls, "asking for tool calls", len(tool_calls.REQUESTS), told)
    return str(tool_calls.measure(calls))


def _mmlu(generator: Generator, wishes: Wishes, told: EvaluationProgress) -> tuple[Score, Score | None]:
    asked, most = wishes.questions, wishes.most_questions
    behind, all_of_it = (mmlu.number_asked(asked, shots, most) for shots in (mmlu.SHOTS, 0))
    logits = counted(generator.next_logits, "asking for letters", behind, told)
    ask = counted(generator.ask, "asking in conversation", all_of_it, told)
    letters = mmlu.by_letters(asked, generator.tokenizer, logits, most)
    return letters, mmlu.in_chat(asked, ask, most) if generator.tokenizer.has_chat_template else None


def _needles(generator: Generator, wishes: Wishes, told: EvaluationProgress) -> list[niah.Cell]:
    def count(text: str) -> int:
        return len(generator.tokenizer.encode(text))

    tries = len(wishes.needle_lengths) * len(niah.DEPTHS) * wishes.needles
    ask = counted(generator.ask, "looking for needles", tries, told)
    return niah.run(ask, count, lengths=wishes.needle_lengths, tries=wishes.needles)
