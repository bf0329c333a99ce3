"""One model's tokenizer and chat template together. Text process: what they cost, texts and model files choose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from server.chat.conversation import Infill, Inquiry, Prompt
from server.chat.describing import describe
from server.chat.description import Description
from server.chat.encoded import EncodedInquiry, EncodedPrompt
from server.chat.infill import encode_infill
from server.chat.prompt import encode_prompt
from server.chat.questions import encode_inquiry
from server.chat.templates.template import ChatTemplate
from server.chat.tokenizers.conversion import Conversions
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary, VocabularyTable


@dataclass(frozen=True)
class Processor:
    """Tokenizer, chat template, the context length to serve, and what else the folder says."""

    tokenizer: ChatTokenizer
    template: ChatTemplate
    context_length: int
    description: Description

    @staticmethod
    def load(folder: Path, context_length: int | None, conversions: Conversions) -> Processor:
        """`context_length` None: what the folder says by itself.

        Raises:
            ModelUnavailable: when a file is missing or broken.
        """
        tokenizer = ChatTokenizer.load(folder, conversions)
        template = ChatTemplate.load(folder, tokenizer.special)
        # Bounds the texts that are tokenized alone, too.
        tokenizer.context_length = context_length or tokenizer.context_length
        return Processor(tokenizer, template, tokenizer.context_length, describe(folder, tokenizer, template))

    def table(self) -> VocabularyTable:
        table = self.tokenizer.table(self.context_length, self.template.wire_format)
        return replace(table, description=self.description)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """As the HTTP process has it."""
        return Vocabulary(self.table())

    def encode_prompt(self, prompt: Prompt, *, with_offsets: bool) -> EncodedPrompt:
        if isinstance(prompt, Infill):
            return encode_infill(self.tokenizer, prompt, self.context_length)
        return encode_prompt(self.tokenizer, self.template, prompt, self.context_length, with_offsets=with_offsets)

    def encode_inquiry(self, inquiry: Inquiry) -> EncodedInquiry:
        return encode_inquiry(self.tokenizer, self.template, inquiry, self.context_length)
