"""Many questions about one prompt, answered by the log-probabilities of their options. Runs in the engine process.

The prompt is read like any other, from and into the prefix cache. The questions follow as further chunks of the same
prefill, so that they share the machine as prompts do; each chunk is one forward pass over as many of them as fit. What
the questions of a group begin with is read once. Then a question takes two passes: the rest of it but its last token,
whose logits nobody needs; and that token, whose logits score the options' first tokens, with what those go on with. A
third is for options that go on in several ways.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from server.engine.prefill import Prefill
from server.engine.scoring.branches import Branches, Continuation, branches
from server.engine.scoring.groups import chains, groups, length
from server.engine_client.protocol import EngineEvent, OptionsScored, ScoreOptions

# In a pass whose logits are looked at: see `scoring`.
_MOST_LOGITS = 128


# Question, option and token.
_Target = tuple[int, int, int]


@dataclass(slots=True)
class _Reading:
    """`tokens` that `text` is to go on with. `targets`: for each of them, what its logits score. Without any, nobody
    looks at its logits."""

    text: Continuation
    tokens: list[int]
    targets: list[list[_Target]] = field(default_factory=list)


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
        self._to_score = sum(map(length, request.branches))
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
        self.intact = False
        logits = self._branches.read([(reading.text, reading.tokens[:count]) for reading, count in self._pass])
        if self._pass[0][0].targets:
            self._score(logits)
        self._branches.evaluate()
        for reading, count in self._pass:
            reading.tokens, reading.targets = reading.tokens[count:], reading.targets[count:]
            self._to_score -= count
        self._pending = [reading for reading in self._pending if reading.tokens]
        self.intact = True

    def undo(self) -> None:
        super().undo()
        if self._branches is not None:
            self._branches.close()
        self._stages.close()
        self._branches, self._pending, self._pass = None, [], []

    def result(self) -> list[EngineEvent]:
        return [OptionsScored(self.request.id, self._logprobs)]

    def _read_questions(self) -> Generator[list[_Reading]]:
        """What can be read at once, stage by stage; the longest of a stage first."""
        tree = self._branches = branches(self._model, self.layers, self.done, together=self._together)
        for group in groups(self._questions, tree.most):
            root = tree.begin() if group.head else None
            if root:
                self._to_score -= group.head * (len(group.questions) - 1)
                yield [_Reading(root, self._questions[group.questions[0]].tail[: group.head])]
            texts = {index: tree.fork(root) if root else tree.begin() for index in group.questions}
            tails = {index: self._questions[index].tail[group.head :] for index in group.questions}
            bodies = [_Reading(texts[index], tail[:-1]) for index, tail in tails.items() if len(tail) > 1]
            yield sorted(bodies, key=_longest_first)
            of_question = {index: self._chains(index) for index in group.questions}
            # One chain needs no text of its own.
            only = {index: found.pop() for index, found in of_question.items() if len(found) == 1}
            ends = []
            for index, text in texts.items():
                tokens, targets = only.get(index, ([], []))
                ends.append(_Reading(text, [tails[index][-1], *tokens], [self._first_targets(index), *targets]))
            yield sorted(ends, key=_longest_first)
            others = [(index, *chain) for index, found in of_question.items() for chain in found]
            for begin in range(0, len(others), tree.most):
                some = others[begin : begin + tree.most]
                forks = [_Reading(tree.fork(texts[index]), tokens, targets) for index, tokens, targets in some]
                yield sorted(forks, key=_longest_first)
            tree.reset()

    def _first_targets(self, index: int) -> list[_Target]:
        return [(index, option, tokens[0]) for option, tokens in enumerate(self._questions[index].options)]

    def _chains(self, index: int) -> list[tuple[list[int], list[list[_Target]]]]:
        """Tokens to read behind the question, and what the logits of each score."""
        options = self._questions[index].options
        return [
            (
                list(chain[:-1]),
                [[(index, o, options[o][at]) for o in scored if at < len(options[o])] for at in range(1, len(chain))],
            )
            for chain, scored in chains(options)
        ]

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


def _longest_first(reading: _Reading) -> int:
    return -len(reading.tokens)
