"""What needs no logits, asked of an OpenAI-compatible endpoint: whatever serves the model, it is judged as served.

MMLU in conversation, needles in a haystack, tool calls, and how fast a streamed reply comes. Greedy, one at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from quantize.errors import QuantizeError
from quantize.evaluate.tasks import mmlu, niah, tool_calls
from quantize.evaluate.tasks.counted import EvaluationProgress, counted
from quantize.evaluate.tasks.mmlu import Score
from quantize.evaluate.tasks.niah import Cell
from quantize.evaluate.tasks.questions import Question
from quantize.evaluate.tasks.tool_calls import DeclaredTool, ToolCalls, WrittenCall

_TIMEOUT_S = 600
_STORY = "Tell a long story about a lighthouse keeper who finds a letter in a bottle."
_CALL_TOKENS = 256
# A token is some four characters: hay needs no better count.
_CHARACTERS = 4


class EndpointError(QuantizeError):
    """The endpoint cannot be reached, or does not answer as OpenAI's does."""


class Reply(msgspec.Struct, frozen=True):
    """Of one streamed reply: seconds to the first token, tokens a second after it, how it ended."""

    tokens: int
    first_token_s: float
    decode: float
    finish: str


class EndpointEvaluation(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was not asked for is None. `failed`: why what comes after the last figure is missing."""

    endpoint: str
    model: str
    tool_calls: ToolCalls | None = None
    mmlu_chat: Score | None = None
    needles: list[Cell] | None = None
    reply: Reply | None = None
    failed: str | None = None


class _Function(msgspec.Struct):
    name: str
    # Some servers send the object itself.
    arguments: Any = None


class _Call(msgspec.Struct):
    function: _Function


class _Message(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] | None = None


class _Answer(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: Annotated[list[_Answer], msgspec.Meta(min_length=1)]


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Part(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: Annotated[int, msgspec.Meta(ge=0)] | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Part] = []
    usage: _Usage | None = None
    error: Any = None


class Endpoint:
    """`url` up to and with `/v1`. Its methods raise EndpointError."""

    def __init__(self, url: str, model: str, key: str | None = None) -> None:
        # It takes a tenth of a second.
        import httpx2

        if key is not None and not (key.isascii() and key.isprintable()):
            raise EndpointError("The API key has characters that a request cannot carry.")
        self.url, self.model = url.rstrip("/"), model
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx2.Client(timeout=_TIMEOUT_S, headers=headers)
        self._failures = httpx2.HTTPError, httpx2.InvalidURL

    def ask(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> str:
        return self._message(list(messages), max_tokens).content or ""

    def calls(self, request: str, tools: Sequence[DeclaredTool]) -> list[WrittenCall]:
        message = self._message([{"role": "user", "content": request}], _CALL_TOKENS, tools=list(tools))
        return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]

    def timed(self, most: int) -> Reply:
        body = self._body([{"role": "user", "content": _STORY}], most)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        began = time.perf_counter()
        first = last = began
        chunks, counted, finish = 0, None, None
        for event in self._events(body):
            counted = event.usage.completion_tokens if event.usage else counted
            for choice in event.choices:
                finish = choice.finish_reason or finish
                delta = choice.delta
                if delta is not None and (delta.content or delta.reasoning_content or delta.reasoning):
                    last = time.perf_counter()
                    first = first if chunks else last
                    chunks += 1
        if finish is None:
            raise EndpointError(f"{self.url} ended its stream before the reply was done.")
        tokens = chunks if counted is None else counted
        return Reply(tokens, first - began, (tokens - 1) / (last - first) if last > first else 0.0, finish)

    def _message(self, messages: list[Any], max_tokens: int, **more: Any) -> _Message:
        with self._failing():
            answer = self._client.post(f"{self.url}/chat/completions", json=self._body(messages, max_tokens) | more)
            self._check(answer)
            return msgspec.json.decode(answer.content, type=_Completion).choices[0].message

    def _events(self, body: Mapping[str, Any]) -> Iterator[_Chunk]:
        with self._failing(), self._client.stream("POST", f"{self.url}/chat/completions", json=body) as answer:
            self._check(answer)
            for line in answer.iter_lines():
                if line.startswith("data:") and (data := line[5:].strip()) != "[DONE]":
                    event = msgspec.json.decode(data, type=_Chunk)
                    if event.error is not None:
                        raise EndpointError(f"{self.url} failed while it answered: {str(event.error)[:200]}")
                    yield event

    def _check(self, answer: Any) -> None:
        if answer.status_code != 200:
            # Of a stream nothing is read before.
            answer.read()
            raise EndpointError(f"{self.url} answered {answer.status_code}: {answer.text[:200]}")

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            raise EndpointError(f"{self.url} cannot be reached: {error}") from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise EndpointError(f"{self.url} does not answer as OpenAI's chat completions do: {error}") from error

    def _body(self, messages: list[Any], max_tokens: int) -> dict[str, Any]:
        return {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": 0}


def evaluate_endpoint(
    endpoint: Endpoint,
    *,
    tools: bool,
    questions: Sequence[Question],
    needles: int,
    generate: int,
    most_questions: int | None = None,
    told: EvaluationProgress = lambda what, done, total: None,
) -> EndpointEvaluation:
    """`needles`: tries a cell, `generate`: tokens of the timed reply; 0 for none. `most_questions`: of each subject.

    What fails half way costs no figure before it. Raises EndpointError where there is none.
    """
    calls = counted(endpoint.calls, "asking for tool calls", len(tool_calls.REQUESTS), told)
    asked = mmlu.number_asked(questions, 0, most_questions)
    chat = counted(endpoint.ask, "asking in conversation", asked, told)
    look = counted(endpoint.ask, "looking for needles", len(niah.LENGTHS) * len(niah.DEPTHS) * needles, told)
    parts: dict[str, Callable[[], object]] = {}
    if tools:
        parts["tool_calls"] = lambda: tool_calls.measure(calls)
    if questions:
        parts["mmlu_chat"] = lambda: mmlu.in_chat(questions, chat, most_questions)
    if needles:
        parts["needles"] = lambda: niah.run(look, lambda text: len(text) // _CHARACTERS, tries=needles)
    if generate:
        parts["reply"] = lambda: endpoint.timed(generate)
    found: dict[str, Any] = {}
    for name, measure in parts.items():
        try:
            found[name] = measure()
        except EndpointError as error:
            if not found:
                raise
            found["failed"] = error.message
            break
    return EndpointEvaluation(endpoint.url, endpoint.model, **found)


def lines(found: EndpointEvaluation) -> list[str]:
    """For people."""
    said = [f"{found.model} at {found.endpoint}"]
    if found.tool_calls is not None:
        said.append(f"valid tool calls  {found.tool_calls}")
    if found.mmlu_chat is not None:
        said.append(f"MMLU, 0-shot      {found.mmlu_chat.right} of {found.mmlu_chat.asked}")
    if found.needles is not None:
        cells = (f"{cell.length:,} tokens, {cell.depth:.0%} deep: {cell.found}/{cell.tries}" for cell in found.needles)
        said += [f"needle            {cell}" for cell in cells]
    if (reply := found.reply) is not None:
        said.append(
            f"a reply           {reply.tokens} tokens, TTFT {reply.first_token_s:.2f} s, "
            f"{reply.decode:.1f} tokens a second, ended by {reply.finish}"
        )
    return said
