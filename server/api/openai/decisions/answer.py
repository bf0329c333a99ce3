"""POST /v1/decisions, outwards: log-probabilities of options -> OpenAI's answers. Pure. HTTP process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from server.api.openai.decisions.request import AnyQuestion, ChoiceQuestion, PredicateQuestion, ScoreQuestion
from server.api.openai.shown import response_usage
from server.chat.deltas import Decided


def decision(decided: Decided, questions: Sequence[AnyQuestion]) -> dict[str, Any]:
    answered = zip(questions, decided.logprobs, strict=True)
    return {
        "model": decided.model,
        "answers": [_answer(question, probabilities(logprobs)) for question, logprobs in answered],
        "usage": response_usage(decided.usage),
    }


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """Of each option, if one of them is the answer: they add up to 1."""
    most = max(logprobs)
    if not math.isfinite(most):
        # The model rules all of them out, and prefers none.
        return [1 / len(logprobs)] * len(logprobs)
    weights = [math.exp(logprob - most) for logprob in logprobs]
    total = sum(weights)
    return [weight / total for weight in weights]


def _answer(question: AnyQuestion, shares: list[float]) -> dict[str, Any]:
    match question:
        case PredicateQuestion():
            return {"type": "predicate", "name": question.name, "probability": shares[0]}
        case ChoiceQuestion():
            values = [option.value for option in question.choices]
            return {
                "type": "choice",
                "name": question.name,
                "choice": values[shares.index(max(shares))],
                "confidence": max(shares),
                "probabilities": [
                    {"value": value, "probability": share} for value, share in zip(values, shares, strict=True)
                ],
            }
        case ScoreQuestion():
            levels = enumerate(zip(question.levels, shares, strict=True))
            return {
                "type": "score",
                "name": question.name,
                "score": sum(value * share for value, share in enumerate(shares)),
                "confidence": max(shares),
                "probabilities": [
                    {"value": value, "label": level.label, "probability": share} for value, (level, share) in levels
                ],
            }
