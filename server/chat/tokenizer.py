"""Text to tokens and back for one model, without transformers. Owned by the HTTP process, shared by its threads.

Everything here is safe to call from several threads. `load`, and encoding a long text, belong in a thread; encoding
goes through `encode_batch` because `Tokenizer.encode` (tokenizers 0.23) keeps the GIL for as long as it runs.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from server.chat.model_files import ModelFacts, read_facts
from server.chat.spelling import Spelling, spelling_of
from server.chat.vocabulary import VocabularyTable
from server.errors import ContextLengthExceeded, InvalidRequest, ModelUnavailable

# The largest vocabularies have 262,144 entries; ids are places in a table.
_MOST_TOKENS = 2**22


class ChatTokenizer:
    """`eos_ids` end an answer. `special_texts` spell the control tokens."""

    def __init__(self, backend: Tokenizer, facts: ModelFacts, spelling: Spelling) -> None:
        # Some tokenizer.json files carry the truncation and padding of their training.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._spelling = spelling
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._markers = {entry.content: token for token, entry in added.items()}
        own_end = backend.token_to_id(facts.special.get("eos_token", ""))
        self.eos_ids = facts.stop_ids | ({own_end} if own_end is not None else set())
        self.bos_id: int | None = backend.token_to_id(facts.special.get("bos_token", ""))
        self._hidden = {token for token, entry in added.items() if entry.special}
        control = self._hidden | (self.eos_ids & self._added)
        self.special_texts = tuple(sorted(added[token].content for token in control))
        self._defaults = facts.sampling
        self.context_length = facts.context_length
        self.vocab_size = facts.vocab_size or backend.get_vocab_size()
        self._longest_token = max((len(piece.encode()) for piece in backend.get_vocab()), default=1)

    @staticmethod
    def load(folder: Path) -> ChatTokenizer:
        """Read the folder's files; up to a second for a vocabulary of 262,144.

        Raises:
            ModelUnavailable: when a file is missing or broken.
        """
        facts = read_facts(folder)
        if not (folder / "tokenizer.json").is_file():
            raise ModelUnavailable("The model's folder has no tokenizer.json.")
        try:
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelUnavailable("The model's tokenizer.json is broken.") from error
        return ChatTokenizer(backend, facts, spelling_of(backend))

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Tokens of `text`; control tokens spelled in it become control tokens. `add_special` adds BOS where the model
        has one."""
        ids: list[int] = self._encoding(text, add_special).ids
        return ids

    def encode_with_borders(self, text: str, borders: Iterable[int]) -> tuple[list[int], dict[int, int]]:
        """Tokens of `text`, and the token offset of each of the character offsets `borders` where encoding
        the text before and after separately gives the same tokens. That is sure only beside an added token."""
        encoding = self._encoding(text, add_special=False)
        ids: list[int] = encoding.ids
        found = {}
        for border in borders:
            index = encoding.char_to_token(border)
            span = None if index is None else encoding.token_to_chars(index)
            if index is None or span is None or span[0] != border:
                continue
            if ids[index] in self._added or (index > 0 and ids[index - 1] in self._added):
                found[border] = index
        return ids, found

    def check_size(self, text: str, context_length: int) -> None:
        """Refuse, before any work, a text that cannot fit whatever its tokens are."""
        most = context_length * self._longest_token
        try:
            # The first comparison spares encoding a text that is hopeless already.
            too_long = len(text) > most or len(text.encode()) > most
        except UnicodeEncodeError:
            raise InvalidRequest("The text holds a lone surrogate, which is not a character.") from None
        if too_long:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {context_length} tokens, but the prompt has more than "
                f"{max(context_length, len(text) // self._longest_token)}."
            )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens spelled out."""
        for token in ids:
            self._check(token)
        text: str = self._backend.decode_batch([list(ids)], skip_special_tokens=False)[0]
        return text

    def table(self, context_length: int) -> VocabularyTable:
        """What the HTTP process needs of the vocabulary; a tenth of a second for 262,144 entries."""
        size = max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        if size > _MOST_TOKENS:
            raise ModelUnavailable(f"The model's tokenizer has the token id {size - 1}, which no vocabulary has.")
        pieces = [self._bytes_of(token) for token in range(size)]
        starts = array("I", accumulate((len(piece) for piece in pieces), initial=0))
        if sys.byteorder == "big":
            starts.byteswap()
        return VocabularyTable(
            text=b"".join(pieces),
            starts=starts.tobytes(),
            hidden=frozenset(self._hidden),
            added=self._markers,
            strips_space=self._spelling.strips_space,
            eos_ids=frozenset(self.eos_ids),
            vocab_size=self.vocab_size,
            context_length=context_length,
            defaults=self._defaults,
        )

    def _encoding(self, text: str, add_special: bool) -> Encoding:
        self.check_size(text, self.context_length)
        return self._backend.encode_batch([text], add_special_tokens=add_special)[0]

    def _bytes_of(self, token: int) -> bytes:
        # Logits are often padded beyond the vocabulary; such an id has no spelling.
        piece = self._backend.id_to_token(token)
        return b"" if piece is None else self._spelling.to_bytes(piece)

    def _check(self, token: int) -> None:
        if not 0 <= token < self.vocab_size:
            raise InvalidRequest(f"A token id is outside the model's vocabulary, 0 to {self.vocab_size - 1}.")
