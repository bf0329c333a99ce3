"""What calibration is worth: `python -m bench.calibration [MODEL]`, the same bytes made in four ways.

MODEL is `trained`, the tiny mixture that the tests ship, or an unquantized model folder. Each way is a build of one
policy: rounding, weighted grids, GPTQ on these, the whole recipe. KL, perplexity and same-top-1 are against the source,
on text of kinds that the calibration held and of kinds that it did not; ratios are to rounding.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import msgspec
from mlx_lm.utils import load_tokenizer

from bench.setup import ROOT
from quantize.build.build import build
from quantize.calibrate.calibration import Calibration, open_source
from quantize.calibrate.corpus import calibration_text
from quantize.calibrate.recipe import SolverSettings
from quantize.evaluate.divergence import TokenFigures
from quantize.evaluate.measure import measure
from quantize.evaluate.summary import summarize
from quantize.evaluate.texts import COVERED, OWN, Passage, passages, read_texts
from quantize.forward.models import FolderModel, InFloat32
from quantize.forward.store import InMemory
from quantize.plan.plan import make_plan
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint
from tests.support.trained import HELD_OUT, stdlib_text, write_trained_model

RESULTS = ROOT / "bench" / "results" / "calibration"
TRAINED = "trained"
METHODS = ("weighted", "gptq", "recipe")
_LENGTH, _MOST = 256, 6144


@dataclass(frozen=True, slots=True)
class Figures:
    kl: float
    ratio: float
    perplexity: float
    reference_perplexity: float
    same_top: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Measured:
    """`groups`: method -> covered or uncovered -> figures. `seconds`: of each build."""

    model: str
    policy: str
    calibration_tokens: int
    groups: Mapping[str, Mapping[str, Figures]]
    seconds: Mapping[str, float]
    made_with: Mapping[str, str]


def run(source: Path, name: str, policy: str, tokens: int, work: Path) -> Measured:
    folders, seconds = {}, {}
    for method in ("rounding", *METHODS):
        began = time.perf_counter()
        folders[method] = _build(source, work / method, policy, method, tokens)
        seconds[method] = round(time.perf_counter() - began, 1)
        print(f"{method}: built in {seconds[method]} s", flush=True)
    groups = _measured(source, folders, _trained(source) if name == TRAINED else _own(source))
    tools = {package: version(package) for package in ("configi-mlx", "mlx", "mlx-lm")}
    return Measured(name, Path(policy).stem, tokens, groups, seconds, tools)


def _build(source: Path, output: Path, policy: str, method: str, tokens: int) -> Path:
    checkpoint = open_checkpoint(str(source), HubOptions())
    if method == "rounding":
        return build(checkpoint, make_plan(checkpoint, policy), output)
    settings = msgspec.convert({"method": method}, SolverSettings)
    calibration = Calibration(calibration_text(), tokens, settings)
    plan = make_plan(checkpoint, policy, calibration=calibration.identity)
    return build(checkpoint, plan, output, calibrate=partial(calibration.run, open_source(str(source), HubOptions())))


def _measured(
    source: Path, folders: Mapping[str, Path], judged: Mapping[str, Sequence[Passage]]
) -> dict[str, dict[str, Figures]]:
    reference, states = InFloat32(FolderModel(source)), InMemory()
    every = [passage for group in judged.values() for passage in group]
    found: dict[str, dict[str, Figures]] = {}
    for method, folder in folders.items():
        by_kind = measure(reference, InFloat32(FolderModel(folder)), every, states=states)
        found[method] = {}
        for group, members in judged.items():
            kinds = dict.fromkeys(passage.kind for passage in members)
            parts: list[TokenFigures] = [part for kind in kinds for part in by_kind[kind]]
            told = summarize(parts)
            kl = told.kl.value
            ratio = kl / found["rounding"][group].kl if method != "rounding" else 1.0
            perplexities = told.perplexity.value, told.reference_perplexity.value
            found[method][group] = Figures(kl, ratio, *perplexities, told.same_top.value, told.tokens)
    return found


def _trained(source: Path) -> dict[str, list[Passage]]:
    """Code is a kind of the calibration text; docstrings of the standard library are not."""
    tokenizer, found = load_tokenizer(source), {}
    for group, kind in (("covered", "code"), ("uncovered", "prose")):
        ids = tokenizer.encode(stdlib_text(HELD_OUT, kind))[:_MOST]
        found[group] = [Passage(kind, ids[at : at + _LENGTH], 1) for at in range(0, len(ids), _LENGTH)]
    return found


def _own(source: Path) -> dict[str, list[Passage]]:
    found = passages(read_texts(OWN), load_tokenizer(source), 2 * _LENGTH)
    return {
        "covered": [passage for passage in found if passage.kind in COVERED],
        "uncovered": [passage for passage in found if passage.kind not in COVERED],
    }


def table(measured: Measured) -> str:
    rows = ["| | covered: KL (ratio), PPL, same top | uncovered: KL (ratio), PPL, same top |", "| --- | --- | --- |"]
    for method, groups in measured.groups.items():
        cells = [f"{one.kl:.4f} ({one.ratio:.2f}), {one.perplexity:.1f}, {one.same_top:.0%}" for one in groups.values()]
        rows.append(f"| {method} | {' | '.join(cells)} |")
    own = ", ".join(f"{one.reference_perplexity:.1f} {name}" for name, one in measured.groups["rounding"].items())
    said = (
        f"{measured.model}, {measured.policy}, {measured.calibration_tokens:,} tokens; perplexity of the source: {own}"
    )
    return "\n".join([said, "", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.calibration", description=__doc__)
    parser.add_argument("model", nargs="?", default=TRAINED)
    parser.add_argument("--policy", default="uniform-2")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        given = arguments.model == TRAINED
        source = write_trained_model(work / "source") if given else Path(arguments.model)
        found = run(source, TRAINED if given else source.resolve().name, arguments.policy, arguments.tokens, work)
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / f"{found.model}-{found.policy}-{found.calibration_tokens}.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    print(table(found))


if __name__ == "__main__":
    main()
