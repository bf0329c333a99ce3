"""What a request asks for, free of any wire protocol: the frozen values that `api` makes and `generation` takes."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from server.chat.parts import Message, ToolCallPart
from server.chat.shapes import Shape
from server.chat.tools import FREE, Tool, ToolChoice


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Whether and how long the model may think before it answers. None leaves it to the model's settings.

    `effort` is the template's word for it where it has one; `budget_tokens` closes a longer thought.
    """

    enabled: bool | None = None
    effort: str | None = None
    budget_tokens: int | None = None


class Conversation(msgspec.Struct, frozen=True, tag=True):
    """Messages for the chat template.

    `template_variables`: extra ones, from an allow-list; scalars only. `reasoning`: what the template is to be told of
    it, in whatever words it has for that. `open`: the model is to write; otherwise the conversation is rendered as it
    stands.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    template_variables: dict[str, str | int | float | bool] = {}
    reasoning: Reasoning = Reasoning()
    open: bool = True

    @property
    def continues(self) -> bool:
        """Whether the model is to go on with the last message (prefill) rather than answer it. One that ends in tool
        calls is over: what comes next are their results."""
        last = self.messages[-1]
        return self.open and last.role == "assistant" and not any(isinstance(p, ToolCallPart) for p in last.parts)


class RawPrompt(msgspec.Struct, frozen=True, tag=True):
    """A prompt without a template: text, or token ids."""

    content: str | tuple[int, ...]


class OtherFile(msgspec.Struct, frozen=True):
    """Another file, or a piece of one, that is worth knowing."""

    name: str
    text: str


class Infill(msgspec.Struct, frozen=True, tag=True):
    """A text with a gap between `prefix` and `suffix`, which the model is to fill.

    `room`: tokens to leave for the answer; what does not fit beside them is left out. None: that is an error.
    """

    prefix: str
    suffix: str
    files: tuple[OtherFile, ...] = ()
    room: int | None = None


Prompt = Conversation | RawPrompt | Infill


class ClosedQuestion(msgspec.Struct, frozen=True):
    """`text` as the model reads it; `options` are the answers, as the model would write them."""

    text: str
    options: tuple[str, ...]


class Inquiry(msgspec.Struct, frozen=True):
    """Questions, each by itself, about the same messages. `preface` stands between them and the question."""

    messages: tuple[Message, ...]
    preface: str
    questions: tuple[ClosedQuestion, ...]


@dataclass(frozen=True, slots=True)
class GenerationOptions:
    """Everything about the answer but its prompt. `None` means the model's or the server's default.

    `max_tokens` None = up to the context, 0 = read the prompt only. `top_logprobs` None = no logprobs, k = k
    alternatives per token.
    Sampling fields that are None take the model's `generation_config.json` values.
    `prompt_logprobs` scores the prompt's own tokens too (completions with echo and logprobs).
    `min_tokens` and `ignore_eos` keep the model from ending early. `allowed_token_ids` None allows all; no text of
    `bad_words` is written. `xtc_*`: with that probability, all but the least likely token above the threshold go.
    `shape`: what the answer's text must be. `tool_choice` means nothing without tools.
    `min_indent`: the answer ends before a line, but its first, that begins with fewer spaces and tabs. `time_limit_s`:
    of its making, after which it ends with its line; 0 is none.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    min_tokens: int = 0
    ignore_eos: bool = False
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] = ()
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    shape: Shape | None = None
    tool_choice: ToolChoice = FREE
    reasoning: Reasoning = Reasoning()
    min_indent: int = 0
    time_limit_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. `group` is served fairly beside others; prefixes are shared by those with the same `cache_salt`."""

    group: str = ""
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One request as `generation` takes it. `id` is the request id of the log and of the x-request-id header.

    A request that is to `wait_for_model` (a stream) is told the model's state while it loads; others wait up to
    `lifecycle.load_wait_s` and then fail with ModelLoading. `keep_alive_s`: how long the model is to stay in memory
    afterwards, infinite for ever; None says nothing of it. `notes`: what its dialect changed in the prompt, for the
    log.
    """

    id: str
    model: str | None
    prompt: Prompt
    options: GenerationOptions
    client: Client = Client()
    wait_for_model: bool = False
    keep_alive_s: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """Like `GenerationRequest`, for questions whose options are scored; it waits for a model like one that does not
    stream."""

    id: str
    model: str | None
    inquiry: Inquiry
    client: Client = Client()
    keep_alive_s: float | None = None
