"""One model's tokenizer and chat template together. Text process: what they cost, texts and model files choose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from server.chat.conversation import Prompt
from server.chat.formats.choose import FORMATS
from server.chat.formats.format import WireFormat
from server.chat.prompt import EncodedPrompt, encode_prompt
from server.chat.template import ChatTemplate
from server.chat.tokenizer import ChatTokenizer
from server.chat.vocabulary import Vocabulary


@dataclass(frozen=True)
class Processor:
    """Tokenizer, chat template, and the context length to serve."""

    tokenizer: ChatTokenizer
    template: ChatTemplate
    context_length: int

    @staticmethod
    def load(folder: Path, context_length: int | None) -> Processor:
        """`context_length` is the configured one; the model's own bounds it.

        Raises:
            ModelUnavailable: when a file is missing or broken.
        """
        tokenizer, template = ChatTokenizer.load(folder), ChatTemplate.load(folder)
        longest = tokenizer.context_length
        return Processor(tokenizer, template, min(context_length or longest, longest))

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """As the HTTP process has it."""
        return Vocabulary(self.tokenizer.table(self.context_length))

    @property
    def wire_format(self) -> WireFormat:
        return FORMATS[self.vocabulary.wire_format]

    def encode_prompt(self, prompt: Prompt) -> EncodedPrompt:
        return encode_prompt(self.tokenizer, self.template, prompt, self.context_length)
