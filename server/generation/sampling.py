"""From the options of a request to the engine's commands; what they leave open is the model's own default."""

from __future__ import annotations

import secrets
from itertools import takewhile
from typing import TypeVar

from server.chat.conversation import Client, GenerationOptions, Reasoning
from server.chat.encoded import EncodedInquiry, EncodedPrompt, EncodedQuestion, End
from server.chat.formats.format import ThoughtMarkers
from server.chat.grammar.constraint import FREE, Constraint
from server.chat.model_files import SamplingDefaults
from server.chat.parts import Role
from server.chat.tokenizers.vocabulary import Vocabulary
from server.engine_client.protocol import Boundary, Branch, Generate, Kind, Sampling, ScoreOptions, Thought
from server.errors import InvalidRequest

T = TypeVar("T")

# An odd number far from any seed a person types.
_CHOICE_STRIDE = 0xD1342543DE82EF95
# Results of tools are what the user's side says.
_KINDS: dict[Role, Kind] = {"system": "system", "user": "user", "tool": "user", "assistant": "assistant"}


def generate_commands(
    options: GenerationOptions,
    client: Client,
    vocabulary: Vocabulary,
    prompt: EncodedPrompt,
    constraint: Constraint = FREE,
    thought: Thought | None = None,
) -> list[Generate]:
    """One `Generate` for each choice.

    Raises:
        InvalidRequest: `logit_bias` or `allowed_token_ids` name a token that the model does not have.
    """
    _check_tokens(options, vocabulary)
    room = vocabulary.context_length - len(prompt.ids)
    seed = secrets.randbits(64) if options.seed is None else options.seed
    return [
        Generate(
            id=0,
            prompt=prompt.ids,
            boundaries=_boundaries(prompt.boundaries),
            client=client.group,
            cache_salt=client.cache_salt,
            # The engine has no request without an answer: one of none makes a token that nobody is shown.
            max_tokens=room if options.max_tokens is None else max(1, min(options.max_tokens, room)),
            # Never more than there is room for, or the answer could not end.
            min_tokens=min(options.min_tokens, room),
            stop_tokens=[] if options.ignore_eos else sorted(vocabulary.eos_ids.union(prompt.stops)),
            keep_answer=prompt.goes_on,
            grammar=constraint.grammar,
            thought=thought,
            top_logprobs=options.top_logprobs,
            prompt_logprobs=options.prompt_logprobs,
            # Each choice has its own stream of random numbers; the first is that of n = 1.
            sampling=_sampling(options, vocabulary.defaults, (seed + choice * _CHOICE_STRIDE) % 2**64, constraint),
        )
        for choice in range(options.n)
    ]


def _sampling(options: GenerationOptions, defaults: SamplingDefaults, seed: int, constraint: Constraint) -> Sampling:
    """What the request leaves open is the model's own default."""
    return Sampling(
        seed=seed,
        temperature=_given(options.temperature, defaults.temperature),
        top_p=_given(options.top_p, defaults.top_p),
        top_k=_given(options.top_k, defaults.top_k),
        min_p=_given(options.min_p, defaults.min_p),
        repetition_penalty=_given(options.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logit_bias=options.logit_bias,
        allowed=None if options.allowed_token_ids is None else list(options.allowed_token_ids),
        banned=constraint.banned,
        xtc_probability=options.xtc_probability,
        xtc_threshold=options.xtc_threshold,
    )


def _check_tokens(options: GenerationOptions, vocabulary: Vocabulary) -> None:
    for param, tokens in (("logit_bias", options.logit_bias), ("allowed_token_ids", options.allowed_token_ids or ())):
        for token in tokens:
            if not 0 <= token < vocabulary.vocab_size:
                message = f"{param}: the vocabulary has {vocabulary.vocab_size} tokens, {token} is not one of them."
                raise InvalidRequest(message, param=param)


def score_command(inquiry: EncodedInquiry, client: Client) -> ScoreOptions:
    return ScoreOptions(
        id=0,
        prompt=inquiry.ids,
        branches=[_branch(question) for question in inquiry.questions],
        boundaries=_boundaries(inquiry.boundaries),
        client=client.group,
        cache_salt=client.cache_salt,
    )


def _branch(question: EncodedQuestion) -> Branch:
    """What all its options begin with stands behind the question: options are compared, and in that they are equal."""
    first, last = min(question.options), max(question.options)
    alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    # Without an end, one may begin with another.
    shared = min(alike, *(len(option) - 1 for option in question.options))
    return Branch([*question.ids, *first[:shared]], [option[shared:] for option in question.options])


def thought_of(
    markers: ThoughtMarkers | None, reasoning: Reasoning, prompt: EncodedPrompt, constraint: Constraint
) -> Thought | None:
    """What the engine must know of the model's thought: something if it is bounded, or if a grammar waits for it."""
    grammar, budget = constraint.grammar, reasoning.budget_tokens
    if markers is None or (budget is None and (grammar is None or grammar.opening)):
        return None
    tail = prompt.text.rstrip()
    is_open = tail.endswith(markers.begin.rstrip())
    over = reasoning.enabled is False or tail.endswith(markers.end.rstrip())
    if over and not is_open and budget is None:
        # What is held from its first token must not begin with a thought that nobody wants.
        return None
    return Thought(begin=markers.begin, end=markers.end, open=is_open, max_tokens=budget, closing=constraint.closing)


def _boundaries(ends: list[End]) -> list[Boundary]:
    return [Boundary(end.offset, _KINDS[end.role]) for end in ends]


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
