"""MMLU by the logits of the four letters after five examples, and by an answer in a conversation."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from quantize.calibrate.tokens import Tokenizer, begun
from quantize.errors import SourceError
from quantize.evaluate.tasks.questions import LETTERS, Question

SHOTS = 5
_ANSWER_TOKENS = 512
_CALLED = re.compile(r"(?i:answer(?: is)?)\W*\b([A-D])\b")
_ALONE = re.compile(r"\b([A-D])\b")


class Score(msgspec.Struct, frozen=True):
    """`right` of `asked`, in all and by subject."""

    right: int
    asked: int
    subjects: dict[str, tuple[int, int]]


def check_questions(questions: Sequence[Question]) -> None:
    """Raises SourceError where a subject has no question left to ask behind its examples."""
    for subject, all_of_it in _by_subject(questions).items():
        if not _parted(all_of_it, SHOTS)[1]:
            raise SourceError(f"The subject {subject} has {len(all_of_it)} questions; the first {SHOTS} are examples.")


def number_asked(questions: Sequence[Question], shots: int, most: int | None) -> int:
    return sum(len(_parted(one, shots)[1][:most]) for one in _by_subject(questions).values())


def by_letters(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    logits: Callable[[Sequence[int]], Any],
    most: int | None = None,
) -> Score:
    """`logits` gives the next token's, (vocabulary,), after some.

    `most`: of each subject.
    """
    # The letter as it stands after a space, whatever the tokenizer puts before it.
    letters = [begun(tokenizer, f"Answer: {letter}")[-1] for letter in LETTERS]

    def answer(examples: Sequence[Question], question: Question) -> int:
        subject = question.subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        shots = "".join(f"{_posed(example)} {LETTERS[example.answer]}\n\n" for example in examples)
        following = logits(begun(tokenizer, head + shots + _posed(question)))
        return int(np.argmax([float(following[letter]) for letter in letters]))

    return _score(questions, answer, SHOTS, most)


def in_chat(
    questions: Sequence[Question], ask: Callable[[Sequence[Mapping[str, str]], int], str], most: int | None = None
) -> Score:
    """`ask` gives the reply to messages, of so many tokens at most. The last letter that it calls its answer counts, or
    without such a word the last one alone: A is an article too.

    `most`: of each subject.
    """

    def answer(_: Sequence[Question], question: Question) -> int:
        text = f"{_listed(question)}\n\nEnd your reply with the line 'Answer: X', where X is the letter of your choice."
        reply = ask([{"role": "user", "content": text}], _ANSWER_TOKENS)
        named = _CALLED.findall(reply) or _ALONE.findall(reply)
        return LETTERS.index(named[-1]) if named else -1

    return _score(questions, answer, 0, most)


def _score(
    questions: Sequence[Question],
    answer: Callable[[Sequence[Question], Question], int],
    shots: int,
    most: int | None,
) -> Score:
    results: dict[str, tuple[int, int]] = {}
    for subject, all_of_it in _by_subject(questions).items():
        examples, asked = _parted(all_of_it, shots)
        asked = asked[:most]
        results[subject] = sum(answer(examples, one) == one.answer for one in asked), len(asked)
    return Score(sum(right for right, _ in results.values()), sum(asked for _, asked in results.values()), results)


def _by_subject(questions: Sequence[Question]) -> Mapping[str, list[Question]]:
    found: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        found[question.subject].append(question)
    return found


def _parted(questions: Sequence[Question], shots: int) -> tuple[Sequence[Question], Sequence[Question]]:
    """Of one subject: the examples, and what is asked."""
    if examples := [question for question in questions if question.example]:
        return examples[:shots], [question for question in questions if not question.example]
    return questions[:shots], questions[shots:]


def _listed(question: Question) -> str:
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question.strip()}\n{choices}"


def _posed(question: Question) -> str:
    return f"{_listed(question)}\nAnswer:"
