"""MMLU from a file: by the logits of the four letters after five examples, and by an answer in a conversation.

No questions ship with the project. A file is CSV without a header (question, A, B, C, D, answer; the form in which the
benchmark was published, one subject a file) or JSONL ("question", "choices", "answer" as number or letter, "subject").
The first five questions of a subject are the examples and are not asked.
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quantize.errors import SourceError
from quantize.files import read_text
from quantize.json_lines import json_lines

LETTERS = "ABCD"
SHOTS = 5
_LETTERS = {letter: number for number, letter in enumerate(LETTERS)}
_ANSWER_TOKENS = 512


class Question(msgspec.Struct, frozen=True):
    subject: str
    question: str
    choices: list[str]
    answer: int


class Score(msgspec.Struct, frozen=True):
    """`right` of `asked`, in all and by subject."""

    right: int
    asked: int
    subjects: dict[str, tuple[int, int]]


def read_questions(file: Path) -> list[Question]:
    """Raises SourceError naming the first line at fault."""
    if file.suffix == ".jsonl":
        found = [_from_json(read, where) for where, read in json_lines(file, SourceError)]
    else:
        subject = re.sub(r"_(test|dev|val)$", "", file.stem)
        found = [_from_row(row, subject, f"{file}, row {number}") for number, row in enumerate(_rows(file), start=1)]
    if not found:
        raise SourceError(f"{file} holds no questions.")
    return found


def _rows(file: Path) -> Iterator[list[str]]:
    # With its line ends: a question in quotes may go over several lines.
    lines = io.StringIO(read_text(file, SourceError), newline="")
    try:
        yield from (row for row in csv.reader(lines, strict=True) if row)
    except csv.Error as error:
        raise SourceError(f"{file} is not CSV: {error}.") from None


def by_letters(
    questions: Sequence[Question], encode: Callable[[str], Sequence[int]], logits: Callable[[Sequence[int]], Any]
) -> Score:
    """`encode` gives the tokens of a text; `logits` the next token's, (vocabulary,), after some."""
    # The letter as it stands after a space, whatever the tokenizer puts before it.
    letters = [encode(f"Answer: {letter}")[-1] for letter in LETTERS]

    def answer(examples: Sequence[Question], question: Question) -> int:
        subject = question.subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        shots = "".join(f"{_posed(example)} {LETTERS[example.answer]}\n\n" for example in examples)
        following = logits(encode(head + shots + _posed(question)))
        return int(np.argmax([float(following[letter]) for letter in letters]))

    return _score(questions, answer, SHOTS)


def in_chat(questions: Sequence[Question], ask: Callable[[Sequence[Mapping[str, str]], int], str]) -> Score:
    """`ask` gives the reply to messages, of so many tokens at most. The last letter that the reply names counts."""

    def answer(_: Sequence[Question], question: Question) -> int:
        text = f"{_listed(question)}\n\nEnd your reply with the line 'Answer: X', where X is the letter of your choice."
        named = re.findall(r"\b([A-D])\b", ask([{"role": "user", "content": text}], _ANSWER_TOKENS))
        return LETTERS.index(named[-1]) if named else -1

    return _score(questions, answer, 0)


def _score(questions: Sequence[Question], answer: Callable[[Sequence[Question], Question], int], shots: int) -> Score:
    subjects: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        subjects[question.subject].append(question)
    results: dict[str, tuple[int, int]] = {}
    for subject, all_of_it in subjects.items():
        examples, asked = all_of_it[:shots], all_of_it[shots:]
        if not asked:
            raise SourceError(f"The subject {subject} has {len(all_of_it)} questions; the first {shots} are examples.")
        results[subject] = sum(answer(examples, one) == one.answer for one in asked), len(asked)
    return Score(sum(right for right, _ in results.values()), sum(asked for _, asked in results.values()), results)


def _listed(question: Question) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question.strip()}\n{choices}"


def _posed(question: Question) -> str:
    return f"{_listed(question)}\nAnswer:"


def _from_json(read: Mapping[str, Any], where: str) -> Question:
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
