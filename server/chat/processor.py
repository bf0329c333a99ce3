"""One model's tokenizer and chat template together. Text process: what they cost, texts and model files choose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from server.chat.conversation import Prompt
from server.chat.conversion import Conversions
from server.chat.encoded import EncodedPrompt
from server.chat.formats.choose import FORMATS
from server.chat.formats.format import WireFormat
from server.chat.prompt import encode_prompt
from server.chat.template import ChatTemplate
from server.chat.tokenizer import ChatTokenizer
from server.chat.vocabulary import Vocabulary, VocabularyTable


@dataclass(frozen=True)
class Processor:
    """Tokenizer, chat template, and the context length to serve."""

    tokenizer: ChatTokenizer
    template: ChatTemplate
    context_length: int
    wire_format: WireFormat

    @staticmethod
    def load(
        folder: Path, context_length: int | None, conversions: Conversions, wire_format: str = "auto"
    ) -> Processor:
        """`context_length` None: what the folder says by itself; `wire_format` "auto": what its template says.

        Raises:
            ModelUnavailable: when a file is missing or broken.
        """
        tokenizer = ChatTokenizer.load(folder, conversions)
        template = ChatTemplate.load(folder, tokenizer.special)
        # Bounds the texts that are tokenized alone, too.
        tokenizer.context_length = context_length or tokenizer.context_length
        chosen = FORMATS[template.wire_format if wire_format == "auto" else wire_format]
        return Processor(tokenizer, template, tokenizer.context_length, chosen)

    def table(self) -> VocabularyTable:
        return self.tokenizer.table(self.context_length, self.wire_format.name)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """As the HTTP process has it."""
        return Vocabulary(self.table())

    def encode_prompt(self, prompt: Prompt, *, with_offsets: bool) -> EncodedPrompt:
        return encode_prompt(self.tokenizer, self.template, prompt, self.context_length, with_offsets=with_offsets)
