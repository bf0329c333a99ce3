"""A candidate against its reference on passages of text, both streamed: neither has to fit into memory.

Of the reference its last hidden states are kept (two bytes a number and token in bfloat16), never its logits; both
models' own norm and head make logits of a few positions at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version

import mlx.core as mx

from quantize.errors import SourceError
from quantize.evaluate.divergence import TokenFigures, compare, joined
from quantize.evaluate.tasks.counted import EvaluationProgress
from quantize.evaluate.texts import Passage
from quantize.forward.capture import finish
from quantize.forward.models import LazyModel
from quantize.forward.store import InMemory, Store
from quantize.forward.stream import Stream

# Of logits at once: 256 positions of a vocabulary of 262,144 are 268 MB in float32.
_POSITIONS = 256


def state_key(reference: LazyModel, passages: Sequence[Passage]) -> str:
    """Equal for equal hidden states: what a store of them is named by."""
    tokens = [list(passage.tokens) for passage in passages]
    tools = [version("mlx"), version("mlx-lm"), str(mx.default_device())]
    return hashlib.sha256(json.dumps([reference.identity, tokens, tools]).encode()).hexdigest()[:32]


def measure(
    reference: LazyModel,
    candidate: LazyModel,
    passages: Sequence[Passage],
    *,
    states: Store,
    told: EvaluationProgress = lambda what, done, total: None,
) -> dict[str, list[TokenFigures]]:
    """Kind -> one entry a passage, of the positions that the answer's tokens follow.

    `states` keeps the reference's hidden states, for this call and for later ones under the same `state_key`.

    Raises:
        SourceError: a model cannot be read or streamed, or the two have different vocabularies.
    """
    sizes = [_vocabulary(model) for model in (reference, candidate)]
    if sizes[0] != sizes[1]:
        given = f"{sizes[1]} and {sizes[0]} tokens"
        raise SourceError(f"The model and the reference have different vocabularies: {given}.")
    chunks = [mx.array([list(passage.tokens)]) for passage in passages]
    streams = []
    for what, model, store in (("reference", reference, states), ("model", candidate, InMemory())):
        stream = Stream(model, chunks, store)
        total = stream.layers * len(chunks)
        stream.run(partial(_tell, told, what, len(chunks), total))
        streams.append(stream)
    heads = [model.make(None) for model in (reference, candidate)]
    found: dict[str, list[TokenFigures]] = defaultdict(list)
    for number, passage in enumerate(passages):
        hidden = [stream.hidden(number) for stream in streams]
        parts = []
        for start in range(max(passage.given - 1, 0), len(passage.tokens) - 1, _POSITIONS):
            stop = min(start + _POSITIONS, len(passage.tokens) - 1)
            logits = [
                finish(head, chunks[number][:, start:stop], states[..., start:stop, :])[0]
                for head, states in zip(heads, hidden, strict=True)
            ]
            parts.append(_compared(logits, chunks[number][0, start + 1 : stop + 1]))
        found[passage.kind].append(joined(parts))
        told("comparing", number + 1, len(passages))
    return dict(found)


def _vocabulary(model: LazyModel) -> int:
    """Nothing is evaluated. Before anything is: a token that a model does not have would be read from anywhere."""
    return int(model.make(None)(mx.array([[0]])).shape[-1])


def _tell(told: EvaluationProgress, what: str, chunks: int, total: int, layer: int, chunk: int) -> None:
    told(what, layer * chunks + chunk + 1, total)


def _compared(logits: Sequence[mx.array], following: mx.array) -> TokenFigures:
    reference, candidate = logits
    if not mx.isfinite(mx.logsumexp(reference, axis=-1)).all().item():
        raise SourceError("The reference gives logits that are not finite.")
    if not mx.isfinite(mx.logsumexp(candidate, axis=-1)).all().item():
        raise SourceError("The model gives logits that are not finite.")
    return compare(reference, candidate, following)
