"""What the engine makes of one architecture, beside what mlx-lm's bare model makes of it.

`observe` puts a tiny model (`architectures.py`) through all that a conversation does to an engine and compares every
answer with `generate_step`: the same tokens, and logprobs that differ by rounding only. In the process of the caller:
a hundred engine processes would take minutes to start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from server.engine import compat, kv
from server.engine.admission import Admission
from server.engine.cost_model import measure
from server.engine.engine import Engine
from server.engine.loading import LoadError, load
from server.engine.prefixes.disk_tier import DiskTier
from server.engine.rehearsal import Together, rehearse
from server.engine_client.protocol import (
    Boundary,
    Cancel,
    EngineEvent,
    Failed,
    Finished,
    Generate,
    Load,
    Prefilled,
    Sampling,
    Tokens,
)
from tests.support.architecture_table import Observed
from tests.support.architectures import VOCABULARY, write_architecture

# Of logprobs; what the order of additions does is a hundred times less, what a wrong mask does a hundred times more.
_TOLERANCE = 2e-3
_MOST_STEPS = 400
# Where a turn ends in the prompts below: what cannot be cut anywhere can be resumed there.
_BOUNDARIES = (10, 20)

# A token and its logprob.
Answer = list[tuple[int, float]]


def prompt(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, VOCABULARY) for _ in range(length)]


def bare(model: Any, tokens: Sequence[int], length: int, *, chunk: int = 2048) -> Answer:
    """What mlx-lm alone answers, reading `chunk` tokens at once."""
    steps = generate_step(mx.array(list(tokens)), model, max_tokens=length, prefill_step_size=chunk)
    return [(int(token), float(logprobs[int(token)].item())) for token, logprobs in steps]


def observe(folder: Path, name: str) -> Observed:
    """`folder` is the test's own."""
    return _observe(write_architecture(folder / "model", name), folder / "prefixes")


def _observe(model_folder: Path, disk_folder: Path) -> Observed:
    try:
        model, vocab_size, weights = load(model_folder)
        together = rehearse(model, vocab_size)
    except LoadError as error:
        return Observed(refused=str(error))
    storable = kv.is_storable(make_prompt_cache(model))

    def engine() -> Conversation:
        disk = DiskTier(disk_folder if storable else None, "one", 10**9)
        return Conversation(model, vocab_size, weights, together, disk)

    wrong: dict[str, str] = {}
    first = engine()
    for scenario in (_alone, _batch, _cancel):
        if fault := scenario(model, first):
            wrong[scenario.__name__[1:]] = fault
    prefix = _reuse(model, first, wrong)
    first.engine.close(60)
    disk = _reuse(model, engine(), wrong, after="a restart") != "never"
    return Observed(None, together.decode, together.prefill, prefix, disk, wrong)


class Conversation:
    """Requests to an engine and its events."""

    def __init__(self, model: Any, vocab_size: int, weights: int, together: Together, disk: DiskTier) -> None:
        options = Load(
            model_dir="", max_concurrent=4, prefill_step_tokens=64, decode_stall_target_s=10, cache_limit=10**8
        )
        self.engine = Engine(model, vocab_size, options, Admission(10**10, weights, measure(model)), disk, together)
        self._events: list[EngineEvent] = []
        self._last = 0

    def ask(self, tokens: Sequence[int], length: int) -> int:
        self._last += 1
        self._handle(
            Generate(
                id=self._last,
                prompt=list(tokens),
                max_tokens=length,
                stop_tokens=[],
                sampling=Sampling(seed=0, temperature=0),
                top_logprobs=0,
                boundaries=[Boundary(offset, "user") for offset in _BOUNDARIES if offset < len(tokens)],
            )
        )
        return self._last

    def cancel(self, id: int) -> None:
        self._handle(Cancel(id))

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Step until all is answered, or `until`."""
        for _ in range(_MOST_STEPS):
            if not self.engine.busy or until():
                return
            self._events += self.engine.step()
        raise AssertionError("the engine does not come to an end")

    def answer(self, id: int) -> Answer:
        """So far."""
        for event in self._events:
            if isinstance(event, Failed) and event.id == id:
                raise AssertionError(event.message)
        made = [event for event in self._events if isinstance(event, Tokens) and event.id == id]
        return [(token, event.logprobs[0].logprob) for event in made for token in event.tokens]

    def finished(self, id: int) -> bool:
        return any(isinstance(event, Finished) and event.id == id for event in self._events)

    def cached(self, id: int) -> int:
        """Prompt tokens that did not need to be read."""
        return max(event.cached for event in self._events if isinstance(event, Prefilled) and event.id == id)

    def fault(self, model: Any, id: int, tokens: Sequence[int], length: int) -> str:
        """How the answer differs from the bare model's; empty when it does not."""
        try:
            return difference(self.answer(id), bare(model, tokens, length))
        except AssertionError as error:
            return str(error).strip().splitlines()[-1]

    def _handle(self, command: Generate | Cancel) -> None:
        self._events += self.engine.handle(command)


def difference(made: Answer, expected: Answer) -> str:
    if len(made) != len(expected):
        return f"{len(made)} tokens instead of {len(expected)}"
    for index, ((token, logprob), (right, right_logprob)) in enumerate(zip(made, expected, strict=True)):
        if token != right or abs(logprob - right_logprob) > _TOLERANCE:
            return f"token {index} is {token} ({logprob:.4f}) instead of {right} ({right_logprob:.4f})"
    return ""


# ---- scenarios: each says what is wrong, or nothing


def _alone(model: Any, talk: Conversation) -> str:
    tokens = prompt(30, 1)
    id = talk.ask(tokens, 8)
    talk.run()
    return talk.fault(model, id, tokens, 8)


def _batch(model: Any, talk: Conversation) -> str:
    """Prompts of several lengths at once, and two that join while the others answer."""
    prompts = [prompt(length, length) for length in (21, 13, 9, 2)]
    ids = [talk.ask(tokens, 6 + index) for index, tokens in enumerate(prompts)]
    talk.run(lambda: talk.finished(ids[0]))
    late = [prompt(length, length) for length in (11, 8)]
    ids += [talk.ask(tokens, 6) for tokens in late]
    talk.run()
    lengths = [6, 7, 8, 9, 6, 6]
    asked = zip(ids, prompts + late, lengths, strict=True)
    return next(filter(None, (talk.fault(model, id, tokens, length) for id, tokens, length in asked)), "")


def _cancel(model: Any, talk: Conversation) -> str:
    """One of two leaves in the middle of its answer; the other goes on, and the first comes back."""
    leaves, stays = prompt(24, 30), prompt(17, 31)
    left, stayed = talk.ask(leaves, 20), talk.ask(stays, 12)
    talk.run(lambda: len(talk.answer(left)) > 3)
    talk.cancel(left)
    said = [token for token, _ in talk.answer(left)]
    talk.run()
    back = [*leaves, *said, 5]
    again = talk.ask(back, 6)
    talk.run()
    return talk.fault(model, stayed, stays, 12) or talk.fault(model, again, back, 6)


def _reuse(model: Any, talk: Conversation, wrong: dict[str, str], after: str = "") -> str:
    """The next turn after `_alone`, and that prompt again with an edit; returns where a prefix can be continued."""
    told = prompt(30, 1)
    longer = [*told, *(token for token, _ in bare(model, told, 8)), *prompt(7, 40)]
    edited = [*told]
    # Another one than before the restart: that has been kept as well.
    edited[25] = (edited[25] + (2 if after else 1)) % VOCABULARY
    cached = {}
    for scenario, tokens in (("prefix", longer), ("edit", edited)):
        id = talk.ask(tokens, 6)
        talk.run()
        if fault := talk.fault(model, id, tokens, 6):
            wrong[f"{scenario} {after}".strip()] = fault
        cached[scenario] = talk.cached(id)
    if not difference(bare(model, edited, 6), bare(model, told, 6)):
        wrong["the edit"] = "it changes nothing, so it shows nothing"
    if cached["edit"] == 25:
        return "anywhere"
    return "checkpoints" if cached["prefix"] and cached["edit"] == 20 else "never"


# ---- what mlx-lm's own batches are worth


def error_in_a_batch(model: Any) -> float:
    """The most that a logit differs when three sequences of different lengths decode together."""
    prompts = [prompt(length, length) for length in (20, 13, 9)]
    caches = [_read(model, tokens) for tokens in prompts]
    merged = [layers[0].merge(list(layers)) for layers in zip(*caches, strict=True)]
    worst = 0.0
    for step in range(4):
        tokens = mx.array([[7 * step + row] for row in range(3)])
        together = model(tokens, cache=merged)[:, -1]
        alone = mx.concatenate([model(tokens[row : row + 1], cache=caches[row])[:, -1] for row in range(3)])
        worst = max(worst, _distance(together, alone))
    return worst


def error_with_padding(model: Any) -> float:
    """The most that a logit differs after prompts of different lengths were read together, behind different pasts."""
    prompts = [prompt(length, length) for length in (20, 13, 9)]
    pasts = [prompt(length, length) for length in (4, 6, 15)]
    read = compat.prefill_together(model, [_read(model, past) for past in pasts], [list(p) for p in prompts])
    worst = 0.0
    for past, tokens, layers in zip(pasts, prompts, read, strict=True):
        alone = model(mx.array([[5]]), cache=_read(model, tokens, _read(model, past)))
        together = model(mx.array([[5]]), cache=layers)
        worst = max(worst, _distance(together, alone))
    return worst


def _read(model: Any, tokens: Sequence[int], layers: compat.Layers | None = None) -> compat.Layers:
    layers = make_prompt_cache(model) if layers is None else layers
    model(mx.array([tokens]), cache=layers)
    kv.evaluate(layers)
    return layers


def _distance(one: mx.array, other: mx.array) -> float:
    distance: Any = mx.abs(one - other).max().item()
    return float(distance)
