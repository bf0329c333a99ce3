"""Text to tokens and back for one model. Text process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Encoding

from server.chat.formats.choose import CONTROL_TEXTS
from server.chat.infill_tokens import INFILL_TEXTS, infill_tokens
from server.chat.model_files import ModelFacts, read_facts
from server.chat.tokenizers.conversion import Conversions
from server.chat.tokenizers.offsets import offsets_in, offsets_of
from server.chat.tokenizers.spelling import Spelling, spelling_of
from server.chat.tokenizers.tokenizer_files import TokenizerFiles, read_tokenizer
from server.chat.tokenizers.vocabulary import VocabularyTable
from server.errors import ContextLengthExceeded, InvalidRequest, ModelUnavailable

# The largest vocabularies have 262,144 entries; ids are places in a table.
_MOST_TOKENS = 2**22
# What a text that goes on from another is encoded behind, to be taken away again: some tokenizers put a space before
# whatever they are given. One is enough, unless a vocabulary has a token that begins with it and goes on.
_LEADS = ("\n", ".", "|", "\u4e00")


class ChatTokenizer:
    """`eos_ids` end an answer. `special_texts` spell the control tokens; `special` are those with names, such as
    bos_token. `infill`: those for filling in the middle, for a model that has them."""

    def __init__(self, files: TokenizerFiles, facts: ModelFacts, spelling: Spelling) -> None:
        backend = files.backend
        # Some tokenizer.json files carry the truncation and padding of their training.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._spelling = spelling
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        self.special = files.special
        self._markers = {entry.content: token for token, entry in added.items()}
        own_end = backend.token_to_id(self.special.get("eos_token", ""))
        self.eos_ids = facts.stop_ids | ({own_end} if own_end is not None else set())
        self.bos_id: int | None = backend.token_to_id(self.special.get("bos_token", ""))
        self._hidden = {token for token, entry in added.items() if entry.special}
        # Those that take the space beside them along would change a message as well.
        greedy = {token for token, entry in added.items() if entry.lstrip or entry.rstrip}
        marks = {token for token, entry in added.items() if entry.content in CONTROL_TEXTS | INFILL_TEXTS}
        control = self._hidden | (self.eos_ids & self._added) | greedy | marks
        self._control = {token: added[token].content for token in control}
        self.special_texts = tuple(sorted(self._control.values()))
        self._normalizes_control = any(added[token].normalized for token in control) and backend.normalizer is not None
        self._leads = self._needed_leads()
        self._defaults = facts.sampling
        self.context_length = facts.context_length
        self.vocab_size = facts.vocab_size or backend.get_vocab_size()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self._largest_id = max(vocabulary.values(), default=-1)
        self._longest_token = max((len(piece.encode()) for piece in vocabulary), default=1)
        self.infill = infill_tokens(self._marker)

    @staticmethod
    def load(folder: Path, conversions: Conversions | None = None) -> ChatTokenizer:
        """Read the folder's files; up to a second for a vocabulary of 262,144, and some more the first time where
        transformers has to put it together, which `conversions` keeps.

        Raises:
            ModelUnavailable: when a file is missing or broken.
        """
        facts = read_facts(folder)
        files = read_tokenizer(folder, conversions or Conversions())
        return ChatTokenizer(files, facts, spelling_of(files.backend))

    @property
    def beginning(self) -> list[int]:
        """What stands before every text: BOS where the tokenizer adds one, else nothing."""
        ids = self.encode("", add_special=True)
        return ids[:1] if ids[:1] == [self.bos_id] else []

    def encode(self, text: str, add_special: bool) -> list[int]:
        """Tokens of `text`; control tokens spelled in it become control tokens. `add_special` adds BOS where the model
        has one."""
        ids: list[int] = self._encoding(text, add_special).ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[int]]:
        """`encode` with BOS, and the character of `text` at which each token begins."""
        encoding = self._encoding(text, add_special=True)
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        pieces = [b"" if added else self._bytes_of(token) for token, added in pairs]
        return encoding.ids, offsets_in(text, pieces, encoding.offsets)

    def offsets(self, ids: Sequence[int]) -> list[int]:
        """The character of `decode(ids)` at which each token begins."""
        pieces = [self._bytes_of(token) for token in ids]
        if self._spelling.strips_space and pieces:
            pieces[0] = pieces[0].removeprefix(b" ")
        return offsets_of(pieces)

    def encode_with_borders(
        self, text: str, borders: Iterable[int], *, goes_on: bool = False
    ) -> tuple[list[int], dict[int, int]]:
        """Tokens of `text`, and the token offset of each of the character offsets `borders` where encoding
        the text before and after separately gives the same tokens. That is sure only beside an added token.
        `goes_on`: there is text before it, so no space is put there."""
        lead, encoding = self._behind_lead(text) if goes_on else ("", self._encoding(text, add_special=False))
        skipped = 0 if not lead else len(self._encoding(lead, add_special=False).ids)
        ids: list[int] = encoding.ids
        found = {}
        for border in borders:
            if border == len(text) and ids and ids[-1] in self._added:
                found[border] = len(ids) - skipped
                continue
            index = encoding.char_to_token(len(lead) + border)
            span = None if index is None else encoding.token_to_chars(index)
            if index is None or span is None or span[0] != len(lead) + border:
                continue
            if ids[index] in self._added or (index > skipped and ids[index - 1] in self._added):
                found[border] = index - skipped
        return ids[skipped:], found

    def misread(self, text: str) -> list[int]:
        """Where in `text` control tokens begin that it does not spell: a normalizer has made their spelling of other
        characters, such as wide ones."""
        if not self._normalizes_control:
            return []
        encoding = self._encoding(text, add_special=False)
        return [
            start
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token in self._control and end - start > 1 and self._control[token] not in text[start:end]
        ]

    def most_characters(self, context_length: int) -> int:
        """As many as certainly pass `check_size`, whatever they are."""
        return context_length * self._longest_token // 4

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

    def table(self, context_length: int, wire_format: str = "plain") -> VocabularyTable:
        """What the HTTP process needs of the vocabulary; a tenth of a second for 262,144 entries."""
        if self._largest_id >= _MOST_TOKENS:
            raise ModelUnavailable(
                f"The model's tokenizer has the token id {self._largest_id}, which no vocabulary has."
            )
        pieces = [self._bytes_of(token) for token in range(self._largest_id + 1)]
        return VocabularyTable.of(
            pieces,
            hidden=self._hidden,
            added=self._markers,
            eos_ids=self.eos_ids,
            wire_format=wire_format,
            strips_space=self._spelling.strips_space,
            vocab_size=self.vocab_size,
            context_length=context_length,
            defaults=self._defaults,
        )

    def _marker(self, text: str) -> int | None:
        """The model's token that is spelled `text`, if it is an added one, or one that ordinary text never becomes."""
        token: int | None = self._backend.token_to_id(text)
        if token is None or token >= self.vocab_size:
            return None
        sure = token in self._added or token not in self._encoding(text, add_special=False).ids
        return token if sure else None

    def _needed_leads(self) -> tuple[str, ...]:
        ids = self._backend.encode_batch(["a"], add_special_tokens=False)[0].ids
        return () if b"".join(map(self._bytes_of, ids)) == b"a" else _LEADS

    def _behind_lead(self, text: str) -> tuple[str, Encoding]:
        """The lead that stands before `text` in the encoding, as tokens of its own; "" where none is needed."""
        for lead in self._leads:
            alone = self._encoding(lead, add_special=False).ids
            encoding = self._encoding(lead + text, add_special=False)
            if encoding.ids[: len(alone)] == alone:
                return lead, encoding
        return "", self._encoding(text, add_special=False)

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
