"""The template and tokenizer of one model as the HTTP process has them: asked over a pipe, never run here."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from server.chat.conversation import Conversation, Prompt
from server.chat.encoded import EncodedPrompt
from server.chat.vocabulary import Vocabulary
from server.child.process import PATIENT, SOON
from server.errors import InvalidRequest, ModelUnavailable
from server.settings.types import LimitSettings, Settings
from server.text.lane import TEXT_COMMAND, Lane
from server.text.protocol import (
    Decode,
    Decoded,
    Encoded,
    EncodePrompt,
    EncodeText,
    TextAnswer,
    TextCommand,
    Tokenized,
    encode,
)

# A command that is larger goes its own way, so that nobody's question waits behind it.
_LARGE_BYTES = 65_536
# The process for large texts holds a tokenizer of its own and is ended when it has had nothing to do for so long.
_IDLE_S = 60


class TextProcess:
    """`vocabulary` is here, for streams: a table of bytes per token. Everything else is asked of a `Lane`."""

    def __init__(self, small: Lane, large: Lane, vocabulary: Vocabulary) -> None:
        self._small = small
        self._large = large
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None
        self.vocabulary = vocabulary
        # Called when the model's files turn out to be gone or broken since they were opened.
        self.on_unavailable: Callable[[], None] = lambda: None

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
        small, large = (
            Lane(
                folder,
                context_length,
                conversions=conversions,
                timeout_s=limits.text_timeout_s,
                memory_limit=int(limits.text_memory_limit),
                command=command,
                niceness=niceness,
                keeps=keeps,
            )
            for niceness, keeps in ((SOON, True), (PATIENT, False))
        )
        try:
            opened = await small.open()
        except BaseException:
            await small.close()
            raise
        assert opened.vocabulary is not None
        return TextProcess(small, large, Vocabulary(opened.vocabulary))

    @staticmethod
    def opener(settings: Settings) -> Callable[[Path, int | None], Awaitable[TextProcess]]:
        """`open` for whoever has folders and no settings."""
        conversions = settings.storage.cache_dir / "tokenizers"
        return lambda folder, context_length: TextProcess.open(folder, context_length, settings.limits, conversions)

    @property
    def context_length(self) -> int:
        return self.vocabulary.context_length

    async def encode_prompt(self, prompt: Prompt, client: str, *, with_offsets: bool = False) -> EncodedPrompt:
        try:
            answer = await self._ask(EncodePrompt(prompt, with_offsets), client)
        except InvalidRequest as error:
            error.param = error.param or ("messages" if isinstance(prompt, Conversation) else "prompt")
            raise
        assert isinstance(answer, Encoded)
        return answer.prompt

    async def encode(self, text: str, add_special: bool, client: str) -> list[int]:
        answer = await self._ask(EncodeText(text, add_special), client)
        assert isinstance(answer, Tokenized)
        return answer.tokens

    async def decode(self, tokens: list[int], client: str) -> str:
        answer = await self._ask(Decode(tokens), client)
        assert isinstance(answer, Decoded)
        return answer.text

    async def rest(self) -> None:
        """Give its memory back until the next request."""
        await asyncio.gather(self._small.rest(), self._large.rest())

    async def close(self) -> None:
        """End its processes; what is under way fails."""
        if self._idle is not None:
            self._idle.cancel()
        await asyncio.gather(self._small.close(), self._large.close())

    async def _ask(self, command: TextCommand, client: str) -> TextAnswer:
        try:
            return await self._asked(encode(command), client)
        except ModelUnavailable:
            self.on_unavailable()
            raise

    async def _asked(self, raw: bytes, client: str) -> TextAnswer:
        if len(raw) <= _LARGE_BYTES:
            return await self._small.ask(raw, client)
        if self._idle is not None:
            self._idle.cancel()
        try:
            return await self._large.ask(raw, client)
        finally:
            self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._rest)

    def _rest(self) -> None:
        self._ending = asyncio.ensure_future(self._large.rest())
