"""The border between the HTTP process and the engine process.

Frozen msgspec structs, msgpack-encoded, over one ZeroMQ PAIR socket: `EngineCommand`s one way, batches of
`EngineEvent`s the other (one frame per engine step, however many sequences it advanced). Nothing else crosses. Both
sides import this file and neither imports the other; tests put a scripted engine behind the same messages.

Token ids are ints of the model's vocabulary. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import msgspec


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is drawn. `temperature` 0 is greedy and then only penalties and bias matter.

    `seed` is an unsigned 64-bit integer and always set: the draw at position i depends on (seed, i) alone, never on
    what else is in the batch.
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    # None allows every token. `banned`: token sequences whose last token is never drawn behind the others.
    allowed: list[int] | None = None
    banned: list[list[int]] = []
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1


# What following a grammar by one token may take, in steps of llguidance's parser. What they cost grows with their
# square: 20,000 take up to 70 ms, the library's own 50,000 take a second.
GRAMMAR_STEPS = 20_000


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What the text of an answer must be: `text` as llguidance reads it, Lark or its JSON, token ids as `<[id]>`.

    It holds from the first token on, behind the model's reasoning where there is a `Thought`. Where `opening` is not
    empty it is lazy: it holds only from the first of these texts that the answer spells, which is the beginning of what
    the grammar describes; when that is complete, the answer is free again until the next one, or ends if it may come
    `once` only.
    """

    text: str
    opening: list[str] = []
    once: bool = False


class Thought(msgspec.Struct, frozen=True, kw_only=True):
    """The reasoning of a model: from the text `begin`, or from the first token if the prompt has it `open`, to the text
    `end`. A grammar waits for it.

    After `max_tokens` of it `closing` is written for it, `end` included.
    """

    begin: str
    end: str
    open: bool = False
    max_tokens: int | None = None
    closing: list[int] = []


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Natural log-probability of `token`, and of the `top` most likely ones at that position, best first."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = []


# ---- commands: HTTP process -> engine process


class Load(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Load the MLX model folder `model_dir`. Sent once, first.

    `memory_limit`: bytes for weights, KV caches and everything else; 0 means only the device's own limit.
    `cache_limit`: bytes of memory for prefixes, of `memory_limit`; `disk_limit`: bytes of files in `disk_dir`, and
    `disk_hourly_limit`: bytes written there in an hour.
    """

    model_dir: str
    max_concurrent: int
    prefill_step_tokens: int
    decode_stall_target_s: float = 0.25
    memory_limit: int = 0
    cache_limit: int = 0
    disk_limit: int = 0
    disk_hourly_limit: int = 2**62
    disk_dir: str | None = None


# Who wrote what ends at a boundary; tool results count as the user's.
Kind = Literal["system", "user", "assistant"]


class Boundary(NamedTuple):
    """Offset into a prompt (exclusive) at which a message ends."""

    offset: int
    kind: Kind


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Continue `prompt` by at most `max_tokens` tokens, until one of `stop_tokens`.

    `boundaries`, ascending, are where a checkpoint is worth keeping. `client` groups requests for fairness.
    `cache_salt`: prefixes are shared by requests with the same one only.
    `top_logprobs`: None = no logprobs; k >= 0 = the chosen token's and the k best ones' at each position.
    `prompt_logprobs`: also score the prompt itself (completions with echo and logprobs).
    Before `min_tokens` no stop token is drawn. `keep_answer`: a later prompt may begin with this one and its answer;
    else only what is before the last boundary is worth keeping. `followed_by` so many others, which are being made
    ready and arrive within milliseconds: what arrives together is read together.
    """

    id: int
    prompt: list[int]
    max_tokens: int
    stop_tokens: list[int]
    sampling: Sampling
    boundaries: list[Boundary] = []
    client: str = ""
    cache_salt: str = ""
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    min_tokens: int = 0
    keep_answer: bool = True
    grammar: Grammar | None = None
    thought: Thought | None = None
    followed_by: int = 0


class Branch(msgspec.Struct, frozen=True):
    """What one question adds to the prompt that it shares with others, and the answers that may follow, all as token
    ids; none is empty."""

    tail: list[int]
    options: list[list[int]]


class ScoreOptions(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How likely each option of each branch is behind `prompt`, which is read once for all of them.

    `boundaries`, `client`, `cache_salt` and `followed_by` as in `Generate`.
    """

    id: int
    prompt: list[int]
    branches: list[Branch]
    boundaries: list[Boundary] = []
    client: str = ""
    cache_salt: str = ""
    followed_by: int = 0

    # What stands in the KV cache behind the prompt at once, about: a group of branches.
    max_tokens: ClassVar[int] = 512


# What takes a slot.
Request = Generate | ScoreOptions


class TokenTable(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The spelling of the model's tokens. Sent once, when the model was loaded, or else before the first request with a
    grammar or a thought.

    Token i is `text[starts[i]:starts[i + 1]]`, `starts` little-endian uint32. `markers`: those that ordinary text never
    becomes. `ends`: those that end an answer.
    """

    text: bytes
    starts: bytes
    markers: list[int]
    ends: list[int]


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Forget request `id`; no event for it follows. Unknown ids are fine: it may just have finished."""

    id: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Exit now, status 0."""


EngineCommand = Load | TokenTable | Generate | ScoreOptions | Cancel | Stop

# ---- events: engine process -> HTTP process


class Loading(msgspec.Struct, frozen=True, tag=True):
    """`done` of the `total` bytes of the weights are in memory."""

    done: int
    total: int


class Loaded(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is resident, and has answered. `batched`: requests share its forward passes. `most_tokens`: for how
    long a sequence there is memory, as long as it is alone; None where the engine cannot tell."""

    seconds: float
    batched: bool = True
    most_tokens: int | None = None


class PeakMemory(NamedTuple):
    """The most bytes that the engine had in use while a prompt was read: as foretold, and as measured."""

    predicted: int
    measured: int


class Prefilled(msgspec.Struct, frozen=True, tag=True):
    """Request `id` holds a slot; `done` of its `total` prompt tokens are in the KV cache, `cached` from a prefix.

    `shared`: how many tokens agree with the most similar earlier prompt; more than `cached` when it cannot be continued
    from there. `peak`: with the last part of a prompt.
    """

    id: int
    done: int
    total: int
    cached: int = 0
    shared: int = 0
    peak: PeakMemory | None = None


class PromptScored(msgspec.Struct, frozen=True, tag=True):
    """The logprobs of the prompt's tokens 1.. (the first has none), for `prompt_logprobs`."""

    id: int
    logprobs: list[TokenLogprob]


class OptionsScored(msgspec.Struct, frozen=True, tag=True):
    """The natural log-probability of every option of every branch of `ScoreOptions`; of an option of several tokens,
    that of all of them. `Finished` follows."""

    id: int
    logprobs: list[list[float]]


class Tokens(msgspec.Struct, frozen=True, tag=True):
    """The next token(s) of request `id`. A stop token is not among them."""

    id: int
    tokens: list[int]
    logprobs: list[TokenLogprob] = []


class Finished(msgspec.Struct, frozen=True, tag=True):
    """The last event of request `id`."""

    id: int
    reason: Literal["stop", "length"]


# The exit status of an engine whose device has failed.
LOST = 3

FailureKind = Literal["invalid", "too_long", "load", "memory", "internal"]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Request `id` ended with an error. With `id` None the engine did: at its load, or, once it has loaded, with all
    requests; it then exits with the status `LOST`. `message` is fit for users.

    `invalid`: the request's own fault. `too_long`: its prompt can never fit into the memory. `load`: the model folder
    cannot be loaded. `memory`: out of memory. `internal`: the engine's fault.
    """

    id: int | None
    kind: FailureKind
    message: str


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Gauges, and the heartbeat of the engine's loop: sent once a second while it works and when it falls idle."""

    running: int
    waiting: int
    kv_bytes: int
    prefix_bytes: int = 0
    active_bytes: int
    peak_bytes: int


EngineEvent = Loading | Loaded | Prefilled | PromptScored | OptionsScored | Tokens | Finished | Failed | Stats

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(EngineCommand).decode
decode_events = msgspec.msgpack.Decoder(list[EngineEvent]).decode
