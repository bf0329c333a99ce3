"""What the HTTP process needs of a model. Read from its folder in a thread: up to a second for a large vocabulary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from server.chat.template import ChatTemplate
from server.chat.tokenizer import ChatTokenizer


@dataclass(frozen=True, slots=True)
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
