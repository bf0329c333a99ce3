"""POST /v1/decisions, inwards: body -> what is asked about which messages. Pure functions. HTTP process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import FailFast, Field, PlainValidator

from server.api.fields import screen
from server.api.keep_alive import KeepAlive
from server.api.openai.content import ContentRules, content_parts
from server.api.openai.decisions.input import parts_with_text, said
from server.api.openai.decisions.table import DECISIONS
from server.api.sampling import model_name
from server.api.wire import TextOrList, Wire, shown, validated
from server.chat.conversation import ClosedQuestion, Inquiry
from server.chat.parts import TextPart
from server.errors import InvalidRequest
from server.http.body import json_object
from server.settings.types import LimitSettings

# OpenAI's bounds.
MOST_QUESTIONS = 400
FEWEST_OPTIONS, MOST_OPTIONS = 2, 255

YES, NO = "Yes", "No"
# Said once for all questions, behind what they are about: what a question says itself is read for each of them.
_PREFACE = (
    "Now a question about the above, or a statement about it that is true or not. Answer with one of the options given "
    "with it and nothing else; where none are given, answer Yes or No."
)


class PredicateQuestion(Wire):
    type: Literal["predicate"]
    instructions: TextOrList
    name: str | None = None


def _text_or_bool(value: Any) -> Any:
    if not isinstance(value, str | bool):
        raise ValueError("should be a string or a boolean")
    return value


class ChoiceOption(Wire):
    value: Annotated[str | bool, PlainValidator(_text_or_bool)]
    description: str | None = None


class ChoiceQuestion(Wire):
    type: Literal["choice"]
    instructions: TextOrList
    choices: Annotated[list[ChoiceOption], FailFast()]
    name: str | None = None


class Level(Wire):
    label: str
    description: str | None = None


class ScoreQuestion(Wire):
    type: Literal["score"]
    instructions: TextOrList
    levels: Annotated[list[Level], FailFast()]
    name: str | None = None


AnyQuestion = PredicateQuestion | ChoiceQuestion | ScoreQuestion
_TYPES: dict[str, type[AnyQuestion]] = {
    "predicate": PredicateQuestion,
    "choice": ChoiceQuestion,
    "score": ScoreQuestion,
}


class DecisionFields(Wire):
    model: str | None = None
    input: TextOrList
    questions: list[Any]
    cache_salt: str = Field("", max_length=1024)
    keep_alive: KeepAlive = None


@dataclass(frozen=True, slots=True)
class DecisionCall:
    """`questions` as they were asked, in the order of those of `inquiry`."""

    model: str | None
    inquiry: Inquiry
    questions: tuple[AnyQuestion, ...]
    cache_salt: str
    keep_alive_s: float | None
    headers: dict[str, str]


def parse_decision(raw: bytes, limits: LimitSettings) -> DecisionCall:
    screened = screen(json_object(raw, limits), DECISIONS)
    _check_counts(screened.values.get("questions"))
    fields = validated(DecisionFields, screened.values, screened.spelled)
    messages, dropped = said(fields.input, limits)
    rules = ContentRules(omit_images=limits.images == "omit")
    questions = tuple(_read(raw, f"questions.{index}") for index, raw in enumerate(fields.questions))
    closed = tuple(_question(asked, rules, f"questions.{index}") for index, asked in enumerate(questions))
    unknown = _unknown_keys(fields.questions, questions)
    return DecisionCall(
        model=model_name(fields.model),
        inquiry=Inquiry(messages, _PREFACE, closed),
        questions=questions,
        cache_salt=fields.cache_salt,
        keep_alive_s=fields.keep_alive,
        headers=screened.headers(*dropped, *dict.fromkeys(unknown)),
    )


def _check_counts(questions: Any) -> None:
    """Before anything is made of them."""
    if not isinstance(questions, list):
        return
    if not 1 <= len(questions) <= MOST_QUESTIONS:
        message = f"questions has {len(questions)} entries; 1 to {MOST_QUESTIONS} are possible."
        raise InvalidRequest(message, param="questions")
    for index, question in enumerate(questions):
        for key in ("choices", "levels") if isinstance(question, dict) else ():
            options = question.get(key)
            if isinstance(options, list) and not FEWEST_OPTIONS <= len(options) <= MOST_OPTIONS:
                where = f"questions.{index}.{key}"
                message = f"{where} has {len(options)} entries; {FEWEST_OPTIONS} to {MOST_OPTIONS} are possible."
                raise InvalidRequest(message, param=where)


def _read(raw: Any, where: str) -> AnyQuestion:
    if not isinstance(raw, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(raw)}.", param=where)
    kind = raw.get("type")
    if not isinstance(kind, str) or kind not in _TYPES:
        message = f"{where}.type must be one of {', '.join(_TYPES)}, not {shown(kind)}."
        raise InvalidRequest(message, param=f"{where}.type")
    return validated(_TYPES[kind], raw, where=where)


def _question(asked: AnyQuestion, rules: ContentRules, where: str) -> ClosedQuestion:
    text = _instructions(asked.instructions, rules, f"{where}.instructions")
    match asked:
        case PredicateQuestion():
            return ClosedQuestion(text, (YES, NO))
        case ChoiceQuestion():
            values = _values([option.value for option in asked.choices], f"{where}.choices")
            lines = _lines(values, [option.description for option in asked.choices])
            return ClosedQuestion(f"{text}\nOptions:\n{lines}", values)
        case ScoreQuestion():
            labels = _values([level.label for level in asked.levels], f"{where}.levels")
            lines = _lines(labels, [level.description for level in asked.levels])
            return ClosedQuestion(f"{text}\nOptions, from the lowest to the highest:\n{lines}", labels)


def _instructions(content: str | list[Any], rules: ContentRules, where: str) -> str:
    parts = content_parts(parts_with_text(content, where), rules, where)
    text = "".join(part.text for part in parts if isinstance(part, TextPart)).strip()
    if not text:
        raise InvalidRequest(f"{where} is empty: there is nothing to answer.", param=where)
    return text


def _values(given: Sequence[str | bool], where: str) -> tuple[str, ...]:
    """As the model is to write them. A boolean is true or false; a text that reads the same is in quotes then."""
    booleans = {json.dumps(value) for value in given if isinstance(value, bool)}
    texts = []
    for index, value in enumerate(given):
        text = json.dumps(value) if isinstance(value, bool) else value.strip()
        if not text:
            raise InvalidRequest(
                f"{where}.{index} is empty: the model cannot answer with it.", param=f"{where}.{index}"
            )
        texts.append(json.dumps(text) if isinstance(value, str) and text in booleans else text)
    for index, text in enumerate(texts):
        if text in texts[:index]:
            raise InvalidRequest(f"{where}.{index} is there twice; each must be unique.", param=f"{where}.{index}")
    return tuple(texts)


def _lines(values: Sequence[str], descriptions: Sequence[str | None]) -> str:
    pairs = zip(values, descriptions, strict=True)
    return "\n".join(f"- {value}: {about}" if about else f"- {value}" for value, about in pairs)


def _unknown_keys(given: list[Any], questions: Sequence[AnyQuestion]) -> Iterator[str]:
    for raw, question in zip(given, questions, strict=True):
        known = type(question).model_fields
        yield from (f"questions.{key}" for key, value in raw.items() if value is not None and key not in known)
