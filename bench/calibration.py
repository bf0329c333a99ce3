"""What calibration is worth: `python -m bench.calibration [MODEL]`, models of one policy's bytes made in several ways.

MODEL is `trained`, the tiny mixture that the tests ship; `embedded`, the small model that the demo serves; `gemma`,
Gemma 3 270M out of optional packages; or an unquantized model folder. Each way is a row: rounding, weighted grids, GPTQ
on these, the whole recipe; the recipe with the policy's bytes spent where they are worth most; mlx-lm's own quantizers.
Figures are against the source, on text of kinds that the calibration held, of kinds that it did not, and on other pages
of the calibration's own documents; ratios are to rounding.

Rows are made one after another, and the file of results holds what is done: a run that was ended goes on, and
`--rows` adds some. `--judged` and `--pages` bound what is judged, where a large vocabulary makes that dear.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import msgspec
from mlx_lm.utils import load_tokenizer

from bench.calibration_rows import ALLOCATED, METHODS, ROUNDING, NoRow, Row, make_apart
from bench.models import cache_folder, embedded, gemma
from bench.setup import ROOT
from quantize.calibrate.corpus import HELD_BACK_KIND, calibration_text
from quantize.calibrate.tokens import LENGTH, beginning, cut
from quantize.errors import QuantizeError
from quantize.evaluate.divergence import TokenFigures
from quantize.evaluate.measure import measure, state_key
from quantize.evaluate.summary import summarize
from quantize.evaluate.texts import COVERED, OWN, Passage, passages, read_texts
from quantize.folder.safetensors_format import read_header
from quantize.forward.models import FolderModel, InFloat32
from quantize.forward.store import InFolder
from tests.support.trained import HELD_OUT, stdlib_text, write_trained_model

RESULTS = ROOT / "bench" / "results" / "calibration"
TRAINED, EMBEDDED, GEMMA = "trained", "embedded", "gemma"
TOOLS = ("mlx-lm dwq", "mlx-lm gptq", "mlx-lm awq", "mlx-lm dynamic")
ROWS = (ROUNDING, *METHODS, ALLOCATED, *TOOLS)
PAGES = "other pages"
_LENGTH, _MOST = 256, 6144
# Chunks of each kind of which neither solver nor guard saw a token.
_PAGES = 6


@dataclass(frozen=True, slots=True)
class Figures:
    kl: float
    ratio: float
    perplexity: float
    reference_perplexity: float
    same_top: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Made:
    """`groups`: covered, uncovered or other pages -> figures; `kinds`: the same of each kind of text. `missing`: why
    there is no such model; then there is nothing else."""

    seconds: float = 0.0
    tensor_bytes: int = 0
    groups: Mapping[str, Figures] = field(default_factory=dict)
    kinds: Mapping[str, Figures] = field(default_factory=dict)
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    model: str
    policy: str
    calibration_tokens: int
    made_with: Mapping[str, str]
    rows: Mapping[str, Made] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """`work` keeps the models and the reference's hidden states. `judged`: tokens of each kind of text, at most.
    `pages`: other pages of each kind, at most; each is a chunk."""

    name: str
    source: Path
    policy: str
    tokens: int
    work: Path
    limit_s: float = 7200
    judged: int = _MOST
    pages: int = _PAGES

    def row(self, name: str, known: Mapping[str, Made]) -> Made:
        """Made and measured. `known`: the rows so far; rounding is the first."""
        output, seconds = self._folder(name), 0.0
        try:
            # Some start from it, and its figures may be of a run whose models are gone.
            for each in dict.fromkeys((ROUNDING, name)):
                seconds = self._made(each)
        except NoRow as reason:
            return Made(missing=str(reason))
        found = self._measured(output)
        stored = sum(
            entry.nbytes for file in output.glob("*.safetensors") for entry in read_header(file).entries.values()
        )
        baseline = known.get(ROUNDING)
        groups, kinds = (
            {part: replace(one, ratio=one.kl / before[part].kl if before else 1.0) for part, one in parts.items()}
            for parts, before in zip(found, (baseline.groups, baseline.kinds) if baseline else ({}, {}), strict=True)
        )
        return Made(round(seconds, 1), stored, groups, kinds)

    def _folder(self, name: str) -> Path:
        return self.work / (name if name == ROUNDING else f"{name}-{self.tokens}".replace(" ", "-"))

    def _made(self, name: str) -> float:
        """The seconds that it took now. Raises NoRow."""
        output = self._folder(name)
        if output.is_dir():
            return 0.0
        row = Row(name, self.source, self.policy, self.tokens, output, self._folder(ROUNDING))
        return make_apart(row, self.limit_s)

    def _measured(self, folder: Path) -> tuple[dict[str, Figures], dict[str, Figures]]:
        judged = _trained(self.source) if self.name == TRAINED else _own(self.source, self.tokens, self.pages)
        judged = {group: _at_most(self.judged, members) for group, members in judged.items()}
        every = [passage for group in judged.values() for passage in group]
        reference = InFloat32(FolderModel(self.source))
        states = InFolder(self.work / f"states-{state_key(reference, every)}")
        by_kind = measure(reference, InFloat32(FolderModel(folder)), every, states=states)
        kinds = {kind: _figures(parts) for kind, parts in by_kind.items()}
        groups = {
            group: _figures([part for kind in dict.fromkeys(p.kind for p in members) for part in by_kind[kind]])
            for group, members in judged.items()
            if members
        }
        return groups, kinds


def run(bench: Bench, rows: Sequence[str], before: Measured | None = None, file: Path | None = None) -> Measured:
    """Every one of `rows` that `before` does not have; after each, all of it is written to `file`."""
    tools = {package: version(package) for package in ("configi-mlx", "mlx", "mlx-lm")}
    found = before or Measured(bench.name, Path(bench.policy).stem, bench.tokens, tools)
    for name in sorted({ROUNDING, *rows}, key=ROWS.index):
        if name not in found.rows:
            made = bench.row(name, found.rows)
            done = {**found.rows, name: made}
            found = replace(found, rows={one: done[one] for one in ROWS if one in done})
            print(_line(name, made), flush=True)
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    return found


def _figures(parts: Sequence[TokenFigures]) -> Figures:
    told = summarize(parts)
    perplexities = told.perplexity.value, told.reference_perplexity.value
    return Figures(told.kl.value, 1.0, *perplexities, told.same_top.value, told.tokens)


def _trained(source: Path) -> dict[str, list[Passage]]:
    """Code is a kind of the calibration text; docstrings of the standard library are not."""
    return {"covered": _stdlib(source, "code", "code"), "uncovered": _stdlib(source, "prose", "docstrings")}


def _own(source: Path, tokens: int, pages: int) -> dict[str, list[Passage]]:
    found = passages(read_texts(OWN), load_tokenizer(source), 2 * _LENGTH)
    return {
        "covered": [passage for passage in found if passage.kind in COVERED] + _stdlib(source, "code", "stdlib code"),
        "uncovered": [passage for passage in found if passage.kind not in COVERED]
        + _stdlib(source, "prose", "docstrings"),
        PAGES: _other_pages(source, tokens, pages),
    }


def _other_pages(source: Path, tokens: int, pages: int) -> list[Passage]:
    """Of the documents that a calibration with so many tokens takes its text from, what it does not take."""
    text, tokenizer = calibration_text(), load_tokenizer(source)
    taken = {chunk.tokens for chunk in cut(text, tokenizer, tokens)}
    left: dict[str, list[Passage]] = defaultdict(list)
    for chunk in cut(text, tokenizer, sys.maxsize):
        if chunk.tokens not in taken and chunk.kind != HELD_BACK_KIND and len(chunk.tokens) == LENGTH:
            left[chunk.kind].append(Passage(f"{chunk.kind}, {PAGES}", chunk.tokens, 1))
    return [passage for kind in sorted(left) for passage in left[kind][:pages]]


def _stdlib(source: Path, part: str, kind: str) -> list[Passage]:
    tokenizer = load_tokenizer(source)
    begin = beginning(tokenizer)
    ids = tokenizer.encode(stdlib_text(HELD_OUT, part), add_special_tokens=False)[:_MOST]
    return [Passage(kind, [*begin, *ids[at : at + _LENGTH]], 1) for at in range(0, len(ids), _LENGTH)]


def _at_most(tokens: int, found: Sequence[Passage]) -> list[Passage]:
    """Of each kind the first passages, the last one cut."""
    left: dict[str, int] = defaultdict(lambda: tokens)
    kept = []
    for passage in found:
        judged = min(len(passage.tokens) - passage.given, left[passage.kind])
        left[passage.kind] -= judged
        if judged > 0:
            kept.append(replace(passage, tokens=passage.tokens[: passage.given + judged]))
    return kept


def table(measured: Measured) -> str:
    """A row each way, and below why some are missing."""
    first = measured.rows[ROUNDING].groups
    heads = [f"{group}: KL (ratio), PPL, same top" for group in first]
    rows = [f"| | MB | {' | '.join(heads)} |", f"| --- | ---: |{' --- |' * len(heads)}"]
    rows += [_line(name, made) for name, made in measured.rows.items() if not made.missing]
    missing = [f"{name}: {made.missing}" for name, made in measured.rows.items() if made.missing]
    own = ", ".join(f"{one.reference_perplexity:.1f} {name}" for name, one in first.items())
    said = f"{measured.model}, {measured.policy}, {measured.calibration_tokens:,} tokens; PPL of the source: {own}"
    return "\n".join([said, "", *rows, *(["", *missing] if missing else [])])


def _line(name: str, made: Made) -> str:
    if made.missing:
        return f"{name}: {made.missing}"
    cells = [
        f"{one.kl:.4f} ({one.ratio:.2f}), {one.perplexity:.1f}, {one.same_top:.0%}" for one in made.groups.values()
    ]
    return f"| {name} | {made.tensor_bytes / 1e6:.1f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.calibration", description=__doc__)
    parser.add_argument("model", nargs="?", default=TRAINED)
    parser.add_argument("--policy", default="uniform-2")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--work", type=Path, help="folder that keeps the models, to go on with")
    parser.add_argument("--limit", type=float, default=7200, help="seconds that a model may take to make")
    parser.add_argument("--judged", type=int, default=_MOST, help="tokens of each kind of text, at most")
    parser.add_argument("--pages", type=int, default=_PAGES, help="other pages of each kind, at most")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = given.work or Path(name)
        try:
            source = _source(given.model, work)
        except QuantizeError as error:
            raise SystemExit(error.message) from None
        called = given.model if given.model in (TRAINED, EMBEDDED, GEMMA) else source.resolve().name
        file = given.output / f"{called}-{Path(given.policy).stem}-{given.tokens}.json"
        before = msgspec.json.decode(file.read_bytes(), type=Measured) if file.is_file() else None
        bench = Bench(called, source, given.policy, given.tokens, work, given.limit, given.judged, given.pages)
        print(table(run(bench, given.rows, before, file)))


def _source(model: str, work: Path) -> Path:
    if model == TRAINED:
        return write_trained_model(work / "source")
    packaged = {EMBEDDED: embedded, GEMMA: gemma}
    return packaged[model](cache_folder()) if model in packaged else Path(model)


if __name__ == "__main__":
    main()
