"""What the HTTP process knows of a model's tokens: a table of bytes per token, enough to turn a stream into text.

The tokenizer itself stays in the text process, since what it does has a price that texts and model files choose. A look
at this table has none.
"""

from __future__ import annotations

import codecs
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence, Set
from itertools import accumulate
from typing import Any

import msgspec

from server.chat.description import Description
from server.chat.model_files import SamplingDefaults
from server.engine_client.protocol import TokenTable

# What a token is, in one byte each: it adds nothing to an answer; ordinary text never becomes it.
_HIDDEN, _MARKER = 1, 2


class Texts(msgspec.Struct, frozen=True):
    """Many texts as one: text i is `text[starts[i]:starts[i + 1]]`, `starts` little-endian uint32."""

    text: bytes
    starts: bytes

    @staticmethod
    def of(pieces: Sequence[bytes]) -> Texts:
        return Texts(b"".join(pieces), _packed(accumulate(map(len, pieces), initial=0)))


class VocabularyTable(msgspec.Struct, frozen=True, kw_only=True):
    """As it crosses from the text process: a few blocks of bytes, since the HTTP process keeps it, and a model's files
    may have any number of tokens of any kind.

    `tokens` by id, `kinds` a byte for each. `added` are the spellings of those beside the text's own, special ones
    among them, in the order of their bytes; `added_ids`, little-endian uint32, are theirs. `wire_format` names how the
    model writes thoughts and calls. `strips_space`: a text's first space belongs to the spelling only. `description`:
    what else the folder says of the model.
    """

    tokens: Texts
    kinds: bytes
    added: Texts
    added_ids: bytes
    wire_format: str = "plain"
    strips_space: bool
    eos_ids: frozenset[int]
    vocab_size: int
    context_length: int
    defaults: SamplingDefaults
    description: Description = Description()

    @staticmethod
    def of(
        pieces: Sequence[bytes], *, hidden: Set[int], added: Mapping[str, int], eos_ids: Set[int], **facts: Any
    ) -> VocabularyTable:
        """`pieces`: the bytes of each token. `hidden` tokens add nothing to an answer. `facts`: the other fields."""
        # Runs of spaces that a tokenizer adds are ordinary text, whatever it calls them.
        markers = {token for text, token in added.items() if not text.isspace()} | hidden | eos_ids
        spelled = sorted((text.encode(), token) for text, token in added.items())
        return VocabularyTable(
            tokens=Texts.of(pieces),
            kinds=bytes(_HIDDEN * (i in hidden) + _MARKER * (i in markers) for i in range(len(pieces))),
            added=Texts.of([text for text, _ in spelled]),
            added_ids=_packed(token for _, token in spelled),
            eos_ids=frozenset(eos_ids),
            **facts,
        )


def _packed(numbers: Iterable[int]) -> bytes:
    packed = array("I", numbers)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


class _Lookup:
    """The texts of a `Texts`, by their number."""

    def __init__(self, texts: Texts) -> None:
        self._text = texts.text
        self._starts = memoryview(texts.starts).cast("I")

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, number: int) -> bytes:
        return self._text[self._starts[number] : self._starts[number + 1]]


class Vocabulary:
    """Safe to use on the event loop: every call is a look into memory."""

    def __init__(self, table: VocabularyTable) -> None:
        self._table = table
        # Not a `_Lookup`: each token of each answer is looked up here, and a call less is a tenth of that.
        self._text = table.tokens.text
        self._starts = memoryview(table.tokens.starts).cast("I")
        self._kinds = table.kinds
        self._added = _Lookup(table.added)
        self._added_ids = memoryview(table.added_ids).cast("I")
        self.wire_format = table.wire_format
        self._strips_space = table.strips_space
        self.eos_ids = table.eos_ids
        self.vocab_size = table.vocab_size
        self.context_length = table.context_length
        self.defaults = table.defaults
        self.description = table.description

    def marker(self, text: str) -> int | None:
        """The special or added token that is spelled `text`; None where that is ordinary text to the model."""
        raw = text.encode()
        place = bisect_left(range(len(self._added)), raw, key=self._added.__getitem__)
        return self._added_ids[place] if place < len(self._added) and self._added[place] == raw else None

    def is_hidden(self, token: int) -> bool:
        """Whether it adds nothing to an answer."""
        return 0 <= token < len(self._kinds) and bool(self._kinds[token] & _HIDDEN)

    def token_table(self) -> TokenTable:
        """For the engine."""
        return TokenTable(
            text=self._table.tokens.text,
            starts=self._table.tokens.starts,
            markers=[token for token, kind in enumerate(self._kinds) if kind & _MARKER],
            ends=sorted(self.eos_ids),
        )

    def token_bytes(self, token: int) -> bytes:
        """Nothing for an id beyond the tokenizer's: logits are often padded."""
        if not 0 <= token < len(self._kinds):
            return b""
        return self._text[self._starts[token] : self._starts[token + 1]]

    def token(self, token: int) -> tuple[str, bytes]:
        """Text (U+FFFD where it is part of a character) and bytes of one token, for logprobs."""
        raw = self.token_bytes(token)
        return raw.decode("utf-8", "replace"), raw

    def shown_bytes(self, token: int) -> bytes:
        """What the token adds to an answer: nothing for control tokens."""
        if not 0 <= token < len(self._kinds) or self._kinds[token] & _HIDDEN:
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
