"""The template and tokenizer of one model as the HTTP process has them: asked over a pipe, never run here."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from server.chat.conversation import Conversation, Inquiry, Prompt
from server.chat.deltas import TokenArray
from server.chat.encoded import EncodedInquiry, EncodedPrompt
from server.chat.grammar.constraint import Constraint
from server.chat.tokenizers.vocabulary import Vocabulary
from server.child.process import PATIENT, SOON
from server.errors import InvalidRequest, ModelUnavailable
from server.settings.types import LimitSettings, Settings
from server.text.lane import TEXT_COMMAND, Lane
from server.text.protocol import (
    Constrain,
    Constrained,
    Decode,
    Decoded,
    Encoded,
    EncodeInquiry,
    EncodePrompt,
    Inquired,
    TextAnswer,
    TextCommand,
    Tokenize,
    Tokenized,
    encode,
)

# A command that is larger goes its own way, so that nobody's question waits behind it.
_LARGE_BYTES = 65_536
# The processes for large texts and for grammars hold a tokenizer each; they end when they have had nothing to do for so
# long.
_IDLE_S = 60
_RENDERING = "Rendering and tokenizing this"
# Of constraints that are remembered.
_MOST_CONSTRAINTS = 64
_MOST_GRAMMAR_CHARS = 8_000_000


class _OnDemand:
    """A lane that is not always needed: its process ends when it has had nothing to do for a while."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._asking = 0
        self._closed = False
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self.rest = lane.rest

    async def ask(self, raw: bytes, client: str) -> TextAnswer:
        self._asking += 1
        self._stop_timer()
        try:
            return await self._lane.ask(raw, client)
        finally:
            self._asking -= 1
            if not (self._asking or self._closed):
                self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._rest)

    async def close(self) -> None:
        self._closed = True
        self._stop_timer()
        await self._lane.close()
        if self._ending is not None:
            await self._ending

    def _rest(self) -> None:
        self._ending = asyncio.ensure_future(self._lane.rest())

    def _stop_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()


class TextProcess:
    """`vocabulary` is here, for streams: a table of bytes per token. Everything else is asked of a `Lane`, of which
    there is one for what takes long and one for grammars, so that nobody's question waits behind them."""

    def __init__(self, small: Lane, large: Lane, grammars: Lane, vocabulary: Vocabulary) -> None:
        self._small = small
        self._large = _OnDemand(large)
        self._grammars = _OnDemand(grammars)
        self._constraints: OrderedDict[bytes, Constraint] = OrderedDict()
        self._asking = 0
        self.vocabulary = vocabulary
        # Told of this one when the model's files turn out to be gone or broken since they were opened. It must not hold
        # this one: then what a large vocabulary takes would stay until the garbage collector comes.
        self.on_unavailable: Callable[[TextProcess], None] = lambda text: None

    @staticmethod
    async def open(
        folder: Path,
        context_length: int | None,
        limits: LimitSettings,
        conversions: Path | None = None,
        command: Sequence[str] = TEXT_COMMAND,
    ) -> TextProcess:
        """`conversions` is the folder of tokenizers that were put together.

        Raises ModelUnavailable when the folder's tokenizer or template is missing or broken.
        """

        def lane(timeout_s: float, work: str, niceness: int, *, keeps: bool = False) -> Lane:
            return Lane(
                folder,
                context_length,
                conversions=conversions,
                timeout_s=timeout_s,
                memory_limit=int(limits.text_memory_limit),
                work=work,
                command=command,
                niceness=niceness,
                keeps=keeps,
            )

        small = lane(limits.text_timeout_s, _RENDERING, SOON, keeps=True)
        large = lane(limits.text_timeout_s, _RENDERING, PATIENT)
        grammars = lane(limits.grammar_timeout_s, "Making a grammar of the tools and the shape of the answer", SOON)
        try:
            opened = await small.open()
        except BaseException:
            await small.close()
            raise
        assert opened.vocabulary is not None
        return TextProcess(small, large, grammars, Vocabulary(opened.vocabulary))

    @staticmethod
    def opener(settings: Settings) -> Callable[[Path, int | None], Awaitable[TextProcess]]:
        """`open` for whoever has folders and no settings."""
        conversions = settings.storage.cache_dir / "tokenizers"
        return lambda folder, context_length: TextProcess.open(folder, context_length, settings.limits, conversions)

    @property
    def context_length(self) -> int:
        return self.vocabulary.context_length

    @property
    def asking(self) -> int:
        """How many wait for an answer."""
        return self._asking

    async def encode_prompt(self, prompt: Prompt, client: str, *, with_offsets: bool = False) -> EncodedPrompt:
        with _blaming(prompt):
            answer = await self._asked(EncodePrompt(prompt, with_offsets), client)
        assert isinstance(answer, Encoded)
        return answer.prompt

    async def encode_inquiry(self, inquiry: Inquiry, client: str) -> EncodedInquiry:
        try:
            answer = await self._asked(EncodeInquiry(inquiry), client)
        except InvalidRequest as error:
            error.param = "input" if error.param in (None, "messages") else error.param
            raise
        assert isinstance(answer, Inquired)
        return answer.inquiry

    async def tokenize(self, prompt: Prompt, add_special: bool, client: str) -> TokenArray:
        with _blaming(prompt):
            answer = await self._asked(Tokenize(prompt, add_special), client)
        assert isinstance(answer, Tokenized)
        return answer.tokens

    async def constrain(self, command: Constrain, client: str) -> Constraint:
        """Agents send the same tools with every request: what was asked before is answered at once.

        Raises:
            InvalidRequest: no grammar can be made of it.
        """
        raw = encode(command)
        key = hashlib.sha256(raw).digest()
        if key in self._constraints:
            self._constraints.move_to_end(key)
            return self._constraints[key]
        answer = await self._ask(self._grammars, raw, client)
        assert isinstance(answer, Constrained)
        self._constraints[key] = answer.constraint
        while len(self._constraints) > 1 and (
            len(self._constraints) > _MOST_CONSTRAINTS
            or sum(len(kept.grammar.text) for kept in self._constraints.values() if kept.grammar) > _MOST_GRAMMAR_CHARS
        ):
            self._constraints.popitem(last=False)
        return answer.constraint

    async def decode(self, tokens: list[int], client: str) -> str:
        answer = await self._asked(Decode(tokens), client)
        assert isinstance(answer, Decoded)
        return answer.text

    async def rest(self) -> None:
        """Give its memory back until the next request."""
        await asyncio.gather(self._small.rest(), self._large.rest(), self._grammars.rest())

    async def close(self) -> None:
        """End its processes; what is under way fails."""
        await asyncio.gather(self._small.close(), self._large.close(), self._grammars.close())

    async def _asked(self, command: TextCommand, client: str) -> TextAnswer:
        raw = encode(command)
        return await self._ask(self._small if len(raw) <= _LARGE_BYTES else self._large, raw, client)

    async def _ask(self, lane: Lane | _OnDemand, raw: bytes, client: str) -> TextAnswer:
        self._asking += 1
        try:
            return await lane.ask(raw, client)
        except ModelUnavailable:
            self.on_unavailable(self)
            raise
        finally:
            self._asking -= 1


@contextmanager
def _blaming(prompt: Prompt) -> Iterator[None]:
    try:
        yield
    except InvalidRequest as error:
        error.param = error.param or ("messages" if isinstance(prompt, Conversation) else "prompt")
        raise
