"""Whether a request names tokens that there are: an index outside the vocabulary is undefined in MLX. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from server.engine_client.protocol import Request, ScoreOptions


def invalid_token(request: Request, vocab_size: int) -> str | None:
    """What is wrong with the request's tokens, if anything."""
    for field, tokens in _tokens_of(request).items():
        for token in tokens:
            if not 0 <= token < vocab_size:
                return f"{field} names token {token}, but the vocabulary has {vocab_size} tokens."
    return None


def _tokens_of(request: Request) -> dict[str, Iterable[int]]:
    """All that it names, by the field."""
    if isinstance(request, ScoreOptions):
        texts = (text for branch in request.branches for text in (branch.tail, *branch.options))
        return {"input": request.prompt, "questions": (token for text in texts for token in text)}
    sampling = request.sampling
    return {
        "prompt": request.prompt,
        "logit_bias": sampling.logit_bias,
        "allowed_token_ids": sampling.allowed or (),
        "bad_words": (token for banned in sampling.banned for token in banned),
        "the thought's closing": request.thought.closing if request.thought else (),
    }
