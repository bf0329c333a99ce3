"""Text to tokens and back for one model, without transformers. Owned by the HTTP process, shared by its threads.

Everything here is safe to call from several threads. `load`, and encoding a long text, belong in a thread; encoding
goes through `encode_batch` because `Tokenizer.encode` (tokenizers 0.23) keeps the GIL for as long as it runs.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from server.chat.model_files import ModelFacts, SamplingDefaults, read_facts
from server.chat.spelling import Spelling, spelling_of
from server.errors import ContextLengthExceeded, InvalidRequest, ModelUnavailable

__all__ = ["ChatTokenizer", "SamplingDefaults", "TokenStream"]


class ChatTokenizer:
    """`eos_ids` end an answer. `special_texts` spell the control tokens. `defaults` are the model's own sampling."""

    def __init__(self, backend: Tokenizer, facts: ModelFacts, spelling: Spelling) -> None:
        # Some tokenizer.json files carry the truncation and padding of their training.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._spelling = spelling
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        own_end = backend.token_to_id(facts.special.get("eos_token", ""))
        self.eos_ids = facts.stop_ids | ({own_end} if own_end is not None else set())
        self.bos_id: int | None = backend.token_to_id(facts.special.get("bos_token", ""))
        self._hidden = {token for token, entry in added.items() if entry.special}
        control = self._hidden | (self.eos_ids & self._added)
        self.special_texts = tuple(sorted(added[token].content for token in control))
        self.defaults: SamplingDefaults = facts.sampling
        self.context_length = facts.context_length
        self.vocab_size = facts.vocab_size or backend.get_vocab_size()
        self._longest_token = max((len(piece.encode()) for piece in backend.get_vocab()), default=1)
        # Filled as tokens are seen; the vocabulary bounds it.
        self._raw: dict[int, bytes] = {}
        self._shown: dict[int, bytes] = {}

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

    def token(self, token: int) -> tuple[str, bytes]:
        """Text (U+FFFD where it is part of a character) and bytes of one token, for logprobs."""
        raw = self._raw.get(token)
        if raw is None:
            self._check(token)
            raw = self._raw[token] = self._bytes_of(token)
        return raw.decode("utf-8", "replace"), raw

    def shown_bytes(self, token: int) -> bytes:
        """What the token adds to an answer: nothing for control tokens and for ids beyond the vocabulary."""
        shown = self._shown.get(token)
        if shown is None:
            hidden = token in self._hidden or not 0 <= token < self.vocab_size
            shown = b"" if hidden else self._bytes_of(token)
            if not hidden:
                self._shown[token] = shown
        return shown

    def stream(self) -> TokenStream:
        return TokenStream(self, strips_space=self._spelling.strips_space)

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


class TokenStream:
    """Incremental detokenizing of one answer.

    Not tokenizers' DecodeStream: that holds back a run of bytes that are not UTF-8 (or of control tokens) for ever and
    decodes all of it again at each token, which one `logit_bias` can provoke: 0.4 ms a token after 4000.
    """

    def __init__(self, tokenizer: ChatTokenizer, *, strips_space: bool) -> None:
        self._shown_bytes = tokenizer.shown_bytes
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
