"""MMLU's questions: from files, or from a data set of the Hub. None ship with the project.

A file is CSV without a header (question, A, B, C, D, answer; the form in which the benchmark was published, one subject
a file), or JSONL or Parquet ("question", "choices", "answer" as number or letter, "subject"). In a file alone the first
five questions of a subject are the examples; a data set has them apart, in its split `dev`.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from quantize.errors import HubError, QuantizeError, SourceError, native_errors
from quantize.files import read_text
from quantize.json_lines import json_lines

LETTERS = "ABCD"
_LETTERS = {letter: number for number, letter in enumerate(LETTERS)}
_SUFFIXES = (".csv", ".jsonl", ".parquet")
_ALL = "all"
# Some fifty times MMLU.
_MOST_ROWS = 1_000_000


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """`example`: shown with its answer before the others of its subject, and not asked."""

    subject: str
    question: str
    choices: list[str]
    answer: int
    example: bool = False


def read_all(sources: Iterable[str], *, offline: bool = False) -> list[Question]:
    """Of each, a file or a data set of the Hub (owner/name, with @revision if wished). Raises QuantizeError."""
    return [one for source in sources for one in (_of_hub(source, offline) if _is_hub(source) else _of_file(source))]


def read_questions(file: Path) -> list[Question]:
    """Raises SourceError naming the first line at fault, QuantizeError for Parquet without its library."""
    subject = re.sub(r"_(test|dev|val)$", "", file.stem)
    if file.suffix == ".jsonl":
        found = [_from_object(read, where) for where, read in json_lines(file, SourceError)]
    elif file.suffix == ".parquet":
        found = [_from_object(row, f"{file}, row {number}") for number, row in enumerate(_table(file), start=1)]
    else:
        found = [_from_row(row, subject, f"{file}, row {number}") for number, row in enumerate(_rows(file), start=1)]
    if not found:
        raise SourceError(f"{file} holds no questions.")
    return found


def chosen_files(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of a data set's files, those of the splits `dev` and `test`: of the folder of all subjects, else of each subject.

    As the Hub lays them out: all/test-00000-of-00001.parquet, anatomy/dev-00000-of-00001.parquet, dev/anatomy_dev.csv.
    """
    splits: dict[str, list[str]] = {"dev": [], "test": []}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix not in _SUFFIXES:
            continue
        # The file's own name counts before those of its folders.
        for part in (path.stem, *reversed(path.parts[:-1])):
            if split := next((split for split in splits if split in re.split(r"[-_.]", part)), None):
                splits[split].append(name)
                break
    everything = {split: [n for n in found if n.startswith(f"{_ALL}/")] for split, found in splits.items()}
    splits = everything if everything["test"] else splits
    return splits["dev"], splits["test"]


def _is_hub(source: str) -> bool:
    is_file = Path(source).expanduser().exists() or source.endswith(_SUFFIXES) or source.startswith((".", "/", "~"))
    return not is_file and source.count("/") == 1


def _of_file(source: str) -> list[Question]:
    return read_questions(Path(source).expanduser())


def _of_hub(source: str, offline: bool) -> list[Question]:
    from quantize.hub.dataset import open_dataset

    found = open_dataset(source, offline=offline)
    dev, test = chosen_files(found.names)
    if not test:
        raise HubError(f"{source} has no split `test` as .parquet, .jsonl or .csv.", retryable=False)
    if any(name.endswith(".parquet") for name in (*dev, *test)):
        check_parquet()
    questions = {split: [one for name in names for one in read_questions(found.file(name))]
                 for split, names in (("dev", dev), ("test", test))}  # fmt: skip
    return [msgspec.structs.replace(one, example=True) for one in questions["dev"]] + questions["test"]


def check_parquet() -> None:
    """Raises QuantizeError without pyarrow, which nothing else needs."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise QuantizeError("Questions in Parquet need pyarrow: pip install pyarrow.") from None


def _table(file: Path) -> Iterator[Mapping[str, Any]]:
    check_parquet()
    from pyarrow import parquet

    if not file.is_file():
        raise SourceError(f"{file} cannot be read: there is no such file.")
    with native_errors(f"{file} is not a Parquet file that can be read"):
        if parquet.read_metadata(file).num_rows > _MOST_ROWS:
            raise SourceError(f"{file} has more than {_MOST_ROWS:,} rows.")
        rows: list[Mapping[str, Any]] = parquet.read_table(file).to_pylist()
    yield from rows


def _rows(file: Path) -> Iterator[list[str]]:
    # With its line ends: a question in quotes may go over several lines.
    lines = io.StringIO(read_text(file, SourceError), newline="")
    try:
        yield from (row for row in csv.reader(lines, strict=True) if row)
    except csv.Error as error:
        raise SourceError(f"{file} is not CSV: {error}.") from None


def _from_object(read: Mapping[str, Any], where: str) -> Question:
    match {"subject": "all", **read}:
        case {"subject": str(subject), "question": str(question), "choices": [str(), str(), str(), str()] as choices}:
            answer = read.get("answer")
            number = _LETTERS.get(answer) if isinstance(answer, str) else answer
            # A truth is a number in Python.
            if type(number) is int and 0 <= number < len(LETTERS):
                return Question(subject, question, choices, number)
    raise SourceError(f'{where}: has no "question", four "choices" and an "answer" of A to D or 0 to 3.')


def _from_row(row: Sequence[str], subject: str, where: str) -> Question:
    if len(row) != 2 + len(LETTERS) or row[-1].strip() not in _LETTERS:
        raise SourceError(f"{where} is not question, A, B, C, D, answer.")
    question, *choices, answer = row
    return Question(subject, question, choices, _LETTERS[answer.strip()])
