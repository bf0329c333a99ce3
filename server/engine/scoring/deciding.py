"""Many questions about one prompt, answered by the log-probabilities of their options. Runs in the engine process.

The prompt is read like any other, from and into the prefix cache. The questions follow as further chunks of the same
prefill, so that they share the machine as prompts do; each chunk is one forward pass over as many of them as fit. A
question takes three: all of it but its last token, whose logits nobody needs; that token, whose logits score the
options' first tokens; and the other tokens of options that have several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from server.engine.prefill import Prefill
from server.engine.scoring.branches import Branches, Continuation, branches
from server.engine_client.protocol import Branch, EngineEvent, Finished, OptionsScored, ScoreOptions

# Tokens of questions that are read before the first of them are forgotten: each costs the others a little attention.
_GROUP_TOKENS = 512
# In a pass whose logits are looked at: see `scoring`.
_MOST_LOGITS = 128


@dataclass(slots=True)
class _Reading:
    """`tokens` that `text` is to go on with. `targets`: for each of them, what its logits score: question, option and
    token. Without any, nobody looks at its logits."""

    text: Continuation
    tokens: list[int]
    targets: list[list[tuple[int, int, int]]] = field(default_factory=list)


class Deciding(Prefill):
    """`together`: several texts of different lengths can be read in one forward pass."""

    batchable = False

    def __init__(
        self, model: Any, request: ScoreOptions, waits_for: int | None = None, *, together: bool = True
    ) -> None:
        super().__init__(model, request, waits_for)
        self._questions = request.branches
        self._together = together
        self._logprobs = [[0.0] * len(branch.options) for branch in request.branches]
        self._to_score = sum(map(_length, request.branches))
        self._stages = self._read_questions()
        self._branches: Branches | None = None
        # Of the stage under way, the next one last; and how many tokens of which of them the next pass reads.
        self._pending: list[_Reading] = []
        self._pass: list[tuple[_Reading, int]] = []

    @property
    def unread(self) -> int:
        """All of the prompt: it has no first step of decoding that would read its last token."""
        return super().unread + 1

    @property
    def remaining(self) -> int:
        return self.unread + self._to_score

    def part(self, size: int, stops: Sequence[int]) -> int:
        if self.unread:
            return super().part(size, stops)
        self._pass = self._next_pass(size)
        return len(self._pass) * max(count for _, count in self._pass)

    def read(self, tokens: int) -> None:
        if self.unread:
            super().read(tokens)
            return
        assert self._branches is not None
        logits = self._branches.read([(reading.text, reading.tokens[:count]) for reading, count in self._pass])
        if self._pass[0][0].targets:
            self._score(logits)
        self._branches.evaluate()
        for reading, count in self._pass:
            reading.tokens, reading.targets = reading.tokens[count:], reading.targets[count:]
            self._to_score -= count
        self._pending = [reading for reading in self._pending if reading.tokens]

    def result(self) -> list[EngineEvent]:
        return [OptionsScored(self.request.id, self._logprobs), Finished(self.request.id, "stop")]

    def _read_questions(self) -> Iterator[list[_Reading]]:
        """What can be read at once, stage by stage."""
        tree = self._branches = branches(self._model, self.layers, self.done, together=self._together)
        for group in self._groups(tree.most):
            texts = {index: tree.begin() for index in group}
            tails = {index: self._questions[index].tail for index in group}
            yield [_Reading(texts[index], tails[index][:-1]) for index in group if len(tails[index]) > 1]
            yield [_Reading(texts[index], tails[index][-1:], [self._first_targets(index)]) for index in group]
            longer = [option for index in group for option in self._longer_options(index)]
            for begin in range(0, len(longer), tree.most):
                yield [
                    _Reading(tree.fork(texts[index]), tokens[:-1], [[(index, option, token)] for token in tokens[1:]])
                    for index, option, tokens in longer[begin : begin + tree.most]
                ]
            tree.reset()

    def _groups(self, most: int) -> Iterator[list[int]]:
        """Questions of like length, so that padding is short; the longest of a group first."""
        group: list[int] = []
        tokens = 0
        for index in sorted(range(len(self._questions)), key=lambda index: -_length(self._questions[index])):
            if group and (len(group) == most or tokens + _length(self._questions[index]) > _GROUP_TOKENS):
                yield group
                group, tokens = [], 0
            group.append(index)
            tokens += _length(self._questions[index])
        yield group

    def _first_targets(self, index: int) -> list[tuple[int, int, int]]:
        return [(index, option, tokens[0]) for option, tokens in enumerate(self._questions[index].options)]

    def _longer_options(self, index: int) -> Iterator[tuple[int, int, list[int]]]:
        options = enumerate(self._questions[index].options)
        return ((index, option, tokens) for option, tokens in options if len(tokens) > 1)

    def _next_pass(self, size: int) -> list[tuple[_Reading, int]]:
        """As many as fit into `size` tokens when each is padded to the longest, or a part of one."""
        while not self._pending:
            self._pending = next(self._stages)
        assert self._branches is not None
        most = min(size, _MOST_LOGITS) if self._pending[-1].targets else size
        chosen: list[tuple[_Reading, int]] = []
        width = 0
        for reading in reversed(self._pending):
            count = min(len(reading.tokens), most)
            width = max(width, count)
            if chosen and (width * (len(chosen) + 1) > most or len(chosen) == self._branches.most):
                break
            chosen.append((reading, count))
        return chosen

    def _score(self, logits: mx.array) -> None:
        """`logits`: (readings, tokens, vocab)."""
        looked_at = [
            (row, at, *target)
            for row, (reading, count) in enumerate(self._pass)
            for at in range(count)
            for target in reading.targets[at]
        ]
        rows, ats, questions, options, tokens = zip(*looked_at, strict=True)
        all_tokens = mx.logsumexp(logits, axis=-1)
        logprobs: Any = (
            logits[mx.array(rows), mx.array(ats), mx.array(tokens)] - all_tokens[mx.array(rows), mx.array(ats)]
        )
        for question, option, logprob in zip(questions, options, logprobs.tolist(), strict=True):
            self._logprobs[question][option] += logprob


def _length(branch: Branch) -> int:
    """Tokens to read for it: its own, and of each option all but the last."""
    return len(branch.tail) + sum(len(option) - 1 for option in branch.options)
