"""What the HTTP process knows of a model's tokens: a table of bytes per token, enough to turn a stream into text.

The tokenizer itself stays in the text process, since what it does has a price that texts and model files choose. A look
at this table has none.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

import msgspec

from server.chat.description import Description
from server.chat.model_files import SamplingDefaults
from server.engine_client.protocol import TokenTable


class VocabularyTable(msgspec.Struct, frozen=True, kw_only=True):
    """As it crosses from the text process. Token i is `text[starts[i]:starts[i + 1]]`, `starts` little-endian uint32.

    `hidden` tokens add nothing to an answer. `added` are the tokens beside the text's own, special ones among them, by
    their text. `wire_format` names how the model writes thoughts and calls. `strips_space`: a text's first space
    belongs to the spelling only. `description`: what else the folder says of the model.
    """

    text: bytes
    starts: bytes
    hidden: frozenset[int]
    added: dict[str, int] = {}
    wire_format: str = "plain"
    strips_space: bool
    eos_ids: frozenset[int]
    vocab_size: int
    context_length: int
    defaults: SamplingDefaults
    description: Description = Description()


class Vocabulary:
    """Safe to use on the event loop: every call is a look into memory."""

    def __init__(self, table: VocabularyTable) -> None:
        self._text = table.text
        self._starts = memoryview(table.starts).cast("I")
        self._size = len(self._starts) - 1
        self._hidden = table.hidden
        self._added = table.added
        self.wire_format = table.wire_format
        self._table = table
        self._strips_space = table.strips_space
        self.eos_ids = table.eos_ids
        self.vocab_size = table.vocab_size
        self.context_length = table.context_length
        self.defaults = table.defaults
        self.description = table.description

    def marker(self, text: str) -> int | None:
        """The special or added token that is spelled `text`; None where that is ordinary text to the model."""
        return self._added.get(text)

    def is_hidden(self, token: int) -> bool:
        """Whether it adds nothing to an answer."""
        return token in self._hidden

    def token_table(self) -> TokenTable:
        """For the engine. Runs of spaces that a tokenizer adds are ordinary text, whatever it calls them."""
        table = self._table
        added = {token for text, token in self._added.items() if not text.isspace()}
        return TokenTable(
            text=table.text,
            starts=table.starts,
            markers=sorted(added | table.hidden | table.eos_ids),
            ends=sorted(table.eos_ids),
        )

    def token_bytes(self, token: int) -> bytes:
        """Nothing for an id beyond the tokenizer's: logits are often padded."""
        if not 0 <= token < self._size:
            return b""
        return self._text[self._starts[token] : self._starts[token + 1]]

    def token(self, token: int) -> tuple[str, bytes]:
        """Text (U+FFFD where it is part of a character) and bytes of one token, for logprobs."""
        raw = self.token_bytes(token)
        return raw.decode("utf-8", "replace"), raw

    def shown_bytes(self, token: int) -> bytes:
        """What the token adds to an answer: nothing for control tokens."""
        if token in self._hidden or not 0 <= token < self._size:
            return b""
        return self._text[self._starts[token] : self._starts[token + 1]]

    def stream(self, prompt: Sequence[int] = ()) -> TokenStream:
        """For what comes after `prompt`: decoding both together less decoding the prompt. A first space is the
        spelling's only where nothing has been shown before it."""
        begins = self._strips_space and not any(map(self.shown_bytes, prompt))
        return TokenStream(self, strips_space=begins)


class TokenStream:
    """Incremental detokenizing of one answer.

    Not tokenizers' DecodeStream: that holds back a run of bytes that are not UTF-8 (or of control tokens) for ever and
    decodes all of it again at each token, which one `logit_bias` can provoke: 0.4 ms a token after 4000.
    """

    def __init__(self, vocabulary: Vocabulary, *, strips_space: bool) -> None:
        self._shown_bytes = vocabulary.shown_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._strips_space = strips_space

    def push(self, token: int) -> str:
        """The text that `token` completes; "" in the middle of a character."""
        text = self._decode(self._shown_bytes(token))
        if self._strips_space and text:
            self._strips_space = False
            return text.removeprefix(" ")
        return text

    def flush(self) -> str:
        """U+FFFD for a character that the last token left incomplete."""
        return self._decode(b"", True)
