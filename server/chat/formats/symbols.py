"""The tokens of an answer as one string, in which a marker that is a token is one symbol. Pure.

Where a marker is one token of the vocabulary, only that token counts: the same characters in ordinary tokens are what
the model quotes. Where it is none, its spelling counts. Symbols are lone surrogates, which no text decodes to, so a
parser finds either kind with the means of strings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from server.chat.tokenizers.vocabulary import Vocabulary

_FIRST = 0xD800
_SYMBOL = re.compile("[\ud800-\udfff]")


class Symbols:
    """`markers`: the texts that may be tokens."""

    def __init__(self, vocabulary: Vocabulary, markers: Iterable[str]) -> None:
        self._of_token: dict[int, str] = {}
        self._of_text: dict[str, str] = {}
        # What an answer shows of a symbol: nothing of a special token.
        self._shown: dict[str, str] = {}
        for text in markers:
            token = vocabulary.marker(text)
            if token is None or token in self._of_token:
                continue
            symbol = chr(_FIRST + len(self._of_token))
            self._of_token[token] = self._of_text[text] = symbol
            self._shown[symbol] = "" if vocabulary.is_hidden(token) else text

    def of(self, text: str) -> str:
        """As it comes from the model: with a symbol for each marker that is a token."""
        for marker in sorted(self._of_text, key=len, reverse=True):
            text = text.replace(marker, self._of_text[marker])
        return text

    def is_token(self, marker: str) -> bool:
        return marker in self._of_text

    def read(self, token: int, text: str) -> str:
        """What the answer goes on with. `text`: what `token` completed."""
        symbol = self._of_token.get(token)
        return text if symbol is None else text.removesuffix(self._shown[symbol]) + symbol

    def shown(self, symbols: str) -> str:
        """As the answer shows it."""
        return _SYMBOL.sub(lambda found: self._shown[found[0]], symbols)

    def hides(self, symbol: str) -> bool:
        """Whether it is a marker of which an answer shows nothing."""
        return self._shown.get(symbol) == ""
