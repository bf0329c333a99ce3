"""The vocabulary that the HTTP process would have of a tokenizer."""

from __future__ import annotations

from functools import cache

from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.chat.tokenizers.vocabulary import Vocabulary


@cache
def vocabulary_of(tokenizer: ChatTokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.table(tokenizer.context_length))
