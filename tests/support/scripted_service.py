"""A `Service` without a model: answers by script, on the routes that the real one serves, on a real socket.

The last message, or the prompt, is the script ("fail early", "fail late", "crash", "hang", "hang before", "pause",
"wait", "stop short", "flood", "echo", or one of `scripts`); anything else is answered with REPLY.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import math
import socket
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI

from server.api.protocols import WireProtocol, mount
from server.app import PROTOCOLS
from server.chat.conversation import (
    Conversation,
    DecisionRequest,
    GenerationOptions,
    GenerationRequest,
    Infill,
    Prompt,
)
from server.chat.deltas import (
    Decided,
    Delta,
    Event,
    Finish,
    ModelPending,
    PrefillProgress,
    PromptLogprobs,
    ReasoningDelta,
    ScoredToken,
    Started,
    TextDelta,
    TokenArray,
    ToolCallDelta,
    Usage,
)
from server.chat.description import Description
from server.errors import EngineFailed, InvalidRequest, ModelNotFound
from server.http.guard import Guard
from server.http.protocol import protocol_class
from server.models.status import ModelStatus
from server.settings.types import Settings

MODEL = "org/tiny-model"
REPLY = ("Paris", " is", " the", " capital", " é", "☃", ".")


def token(index: int, text: str, k: int | None, logprob: float = -0.5, offset: int = 0) -> ScoredToken:
    top = tuple((index + j, text if j == 0 else f"alt{j}", b"?", logprob - j) for j in range(k or 0))
    return ScoredToken(index, text, text.encode(), logprob, top, offset)


@dataclass
class ScriptedService:
    settings: Settings = field(default_factory=Settings)
    requests: list[GenerationRequest] = field(default_factory=list)
    decisions: list[DecisionRequest] = field(default_factory=list)
    tokenized: list[Prompt] = field(default_factory=list)
    state: ModelStatus = field(default_factory=lambda: ModelStatus(MODEL, "ready", "ready", context_length=4096))
    # What its files say; None while they are not read.
    about: Description | None = None
    # By the text of a last message, what the model says to it.
    scripts: Mapping[str, Sequence[Delta]] = field(default_factory=dict)
    alive: bool = True
    running: int = 0
    # Set whenever the last running generation has ended.
    idle: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.running += 1
        self.idle.clear()
        try:
            async for event in self._events(request):
                yield event
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()

    async def _events(self, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.model(request.model or MODEL)
        script = _text(request.prompt)
        if script == "fail early":
            raise InvalidRequest("The template says no.", param="messages")
        if script == "hang before":
            self.begun.set()
            await asyncio.Event().wait()
        if script == "wait":
            yield ModelPending("loading\r\n\r\ndata: weights")
        yield Started(MODEL, 5, "" if isinstance(request.prompt, Conversation) else script, [1, 2, 3, 4, 5])
        yield PrefillProgress(5, 5, 2)
        self.begun.set()
        if script == "fail late":
            raise EngineFailed("The engine ended.")
        if script == "crash":
            raise RuntimeError("secret detail")
        if script == "hang":
            await asyncio.Event().wait()
        if script == "pause":
            await asyncio.to_thread(self.go_on.wait, 10)
        if script == "stop short":
            return
        while script == "flood":
            yield TextDelta(0, "x" * 4096)
            await asyncio.sleep(0)
        if script == "echo":
            async for event in _echo(request):
                yield event
            return
        if script in self.scripts:
            for event in _scripted(self.scripts[script]):
                yield event
            return
        async for event in self._answer(request.options, script):
            yield event

    async def _answer(self, options: GenerationOptions, script: str) -> AsyncGenerator[Event, None]:
        k = options.top_logprobs
        if options.prompt_logprobs:
            halves = (script[:2], script[2:])
            tokens = tuple(token(i, half, k, math.nan if i == 0 else -1.5, 2 * i) for i, half in enumerate(halves))
            for choice in range(options.n):
                yield PromptLogprobs(choice, tokens)
        pieces = REPLY[: options.max_tokens]
        for index, piece in enumerate(pieces):
            for choice in range(options.n):
                at = len("".join(pieces[:index]))
                yield TextDelta(choice, piece, () if k is None else (token(index, piece, k, offset=at),))
        reason = "stop" if len(pieces) == len(REPLY) else "length"
        for choice in range(options.n):
            yield Finish(choice, reason, len(pieces))
        yield Usage(5, len(pieces) * options.n, 2)

    async def decide(self, request: DecisionRequest) -> Decided:
        """Each option is half as likely as the one before it. The last message is the script."""
        self.decisions.append(request)
        self.model(request.model or MODEL)
        script = request.inquiry.messages[-1].text
        if script == "fail early":
            raise InvalidRequest("The template says no.", param="input")
        self.running += 1
        self.idle.clear()
        self.begun.set()
        try:
            if script == "hang":
                await asyncio.Event().wait()
            await asyncio.sleep(0)
        finally:
            self.running -= 1
            self.idle.set()
        logprobs = [[-index * math.log(2) for index in range(len(q.options))] for q in request.inquiry.questions]
        return Decided(MODEL, logprobs, Usage(50, 0, 40))

    async def tokenize(self, model: str | None, prompt: Prompt, add_special: bool, client: str) -> TokenArray:
        self.model(model or MODEL)
        self.tokenized.append(prompt)
        ids = [1] * add_special + list(_text(prompt).encode())
        return TokenArray(len(ids), msgspec.json.encode(ids))

    async def detokenize(self, model: str | None, tokens: list[int], client: str) -> str:
        return bytes(tokens).decode()

    def models(self) -> list[ModelStatus]:
        return [self.state]

    def model(self, name: str) -> ModelStatus:
        if name != MODEL and not name.startswith("gpt-"):
            raise ModelNotFound("There is no such model.", param="model")
        return self.state

    async def description(self, name: str) -> Description | None:
        self.model(name)
        return self.about

    def default_model(self) -> ModelStatus:
        return self.state

    def healthy(self) -> bool:
        return self.alive

    def metrics(self) -> bytes:
        return b"configi_up 1\n"


def _scripted(deltas: Sequence[Delta]) -> Iterator[Event]:
    """The deltas of choice 0, of which each is one token, and the ending that goes with them."""
    yield from deltas
    called = any(isinstance(delta, ToolCallDelta) for delta in deltas)
    thought = sum(isinstance(delta, ReasoningDelta) for delta in deltas)
    yield Finish(0, "tool_calls" if called else "stop", len(deltas))
    yield Usage(5, len(deltas), 2, thought)


async def _echo(request: GenerationRequest) -> AsyncGenerator[Event, None]:
    """What was asked for, said back: the shape as text, then a call of each tool with its schema. Every piece takes a
    turn of the event loop, so that many such answers mix."""
    assert isinstance(request.prompt, Conversation)
    deltas: list[Delta] = [TextDelta(0, word) for word in repr(request.options.shape).split(" ")]
    for index, tool in enumerate(request.prompt.tools):
        deltas.append(ToolCallDelta(0, index, f"call_{request.id}_{index}", tool.name))
        deltas += [ToolCallDelta(0, index, arguments=piece) for piece in json.dumps(tool.parameters).split(" ")]
    for event in _scripted(deltas):
        await asyncio.sleep(0)
        yield event


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, Conversation):
        return prompt.messages[-1].text
    if isinstance(prompt, Infill):
        return f"{prompt.prefix}|{prompt.suffix}" if prompt.suffix else prompt.prefix
    return prompt.content if isinstance(prompt.content, str) else bytes(prompt.content).decode()


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The payloads of an SSE body; "[DONE]" as it is."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [line if line == "[DONE]" else json.loads(line) for line in lines]


@dataclass(frozen=True)
class Running:
    service: ScriptedService
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, method: str, path: str, body: object = None, **headers: str) -> Reply:
        """Bytes are sent as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, raw, {"content-type": "application/json", **headers})
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read())

    def open(self, path: str, body: object) -> socket.socket:
        """A connection with the request sent and nothing read, for clients that misbehave."""
        raw = json.dumps(body).encode()
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", self.port))
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        connection.sendall(head.encode() + raw)
        return connection

    def chat(self, **fields: object) -> Reply:
        return self.send("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], **fields})

    def complete(self, **fields: object) -> Reply:
        return self.send("POST", "/v1/completions", {"prompt": "Hello", **fields})


@contextlib.contextmanager
def running(
    service: ScriptedService, protocols: Sequence[WireProtocol] = PROTOCOLS, *, guarded: bool = False
) -> Iterator[Running]:
    """The routes alone, or `guarded` as the real server is."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    dialects = mount(app, service, protocols)
    settings = service.settings.server
    config = uvicorn.Config(
        Guard(app, settings, dialects) if guarded else app,
        http=protocol_class(settings.header_timeout_s, settings.sse_write_timeout_s, dialects) if guarded else "h11",
        port=0,
        log_config=None,
        # The guard ends with it the process that reads large bodies.
        lifespan="on" if guarded else "off",
        ws="none",
    )
    up = threading.Event()

    class Announced(uvicorn.Server):
        async def startup(self, sockets: list[Any] | None = None) -> None:
            await super().startup(sockets)
            up.set()

    server = Announced(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert up.wait(10)
        yield Running(service, server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(10)
