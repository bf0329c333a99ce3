"""How the model spells its tokens, for what watches the text of an answer as it grows. Runs in the engine process."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cached_property

from server.engine_client.protocol import TokenTable

# Stands for a marker among bytes; no text has it, since UTF-8 has no byte 0xFF.
_MARKER = b"\xff%d\xff"
_MARKERS = re.compile(rb"\xff(\d+)\xff")


# Bytes of the longest token that is looked for.
_LONGEST = 64


class GrammarError(Exception):
    """The request's grammar cannot be used; the message is fit for users."""


class SpelledTokens:
    """A token's code is its bytes, or for a marker one unit that no text can spell."""

    def __init__(self, table: TokenTable, vocab_size: int) -> None:
        starts = memoryview(table.starts).cast("I")
        known = min(len(starts) - 1, vocab_size)
        self.texts = [table.text[starts[i] : starts[i + 1]] for i in range(known)]
        # Logits are often padded beyond the vocabulary; such an id has no spelling.
        self.texts += [b""] * (vocab_size - known)
        self.markers = frozenset(token for token in table.markers if token < known)
        self.ends = [token for token in table.ends if token < known]

    def code(self, token: int) -> bytes:
        return _MARKER % token if token in self.markers else self.texts[token]

    def coded(self, text: str) -> bytes:
        """`text` with the markers that it spells as such."""
        raw = text.encode()
        if self._marker_pattern is None:
            return raw
        return self._marker_pattern.sub(lambda found: _MARKER % self._marker_of[found[0]], raw)

    def spell(self, coded: bytes) -> list[int]:
        """Tokens of a coded text: markers as they are, the rest in the longest tokens that fit.

        Raises:
            GrammarError: the vocabulary has no token for one of the bytes.
        """
        tokens: list[int] = []
        place = 0
        for marker in _MARKERS.finditer(coded):
            tokens += [*self._spell_text(coded[place : marker.start()]), int(marker[1])]
            place = marker.end()
        return tokens + self._spell_text(coded[place:])

    def _spell_text(self, text: bytes) -> list[int]:
        tokens = []
        while text:
            end = next((end for end in range(min(len(text), _LONGEST), 0, -1) if text[:end] in self._token_of), 0)
            if not end:
                raise GrammarError(f"The model's vocabulary cannot spell the byte {text[0]:#04x}.")
            tokens.append(self._token_of[text[:end]])
            text = text[end:]
        return tokens

    def beyond(self, start: bytes) -> list[int]:
        """The tokens whose text begins with `start`, a coded text, and goes on."""
        if start.startswith(b"\xff"):
            return []
        texts, found = self._sorted, []
        for text, token in texts[bisect_left(texts, (start,)) :]:
            if not text.startswith(start):
                break
            if text != start:
                found.append(token)
        return found

    @cached_property
    def _token_of(self) -> dict[bytes, int]:
        return {text: token for text, token in reversed(self._sorted)}

    @cached_property
    def _sorted(self) -> list[tuple[bytes, int]]:
        return sorted((text, i) for i, text in enumerate(self.texts) if text and i not in self.markers)

    @cached_property
    def _marker_of(self) -> dict[bytes, int]:
        return {self.texts[token]: token for token in sorted(self.markers, reverse=True) if self.texts[token]}

    @cached_property
    def _marker_pattern(self) -> re.Pattern[bytes] | None:
        texts = sorted(self._marker_of, key=len, reverse=True)
        return re.compile(b"|".join(map(re.escape, texts))) if texts else None


class Watch:
    """Looks for texts in the tokens of an answer. `texts` are coded."""

    def __init__(self, tokens: SpelledTokens, texts: list[bytes]) -> None:
        self._tokens = tokens
        self._texts = texts
        self._longest = max(map(len, texts), default=0)
        self._tail = b""

    def push(self, token: int) -> tuple[int, bytes] | None:
        """The index of the text that `token` completed, and what was written from its beginning on; then the watch
        begins anew."""
        code = self._tokens.code(token)
        tail = self._tail + code
        places = [(place, i) for i, text in enumerate(self._texts) if (place := tail.find(text)) >= 0]
        if places:
            place, index = min(places)
            self._tail = b""
            return index, tail[place:]
        self._tail = tail[max(0, len(tail) - self._longest + 1) :] if self._longest > 1 else b""
        return None

    def begun(self) -> list[tuple[int, int]]:
        """Each text that may be under way, with how much of it is written; 0 too, since it may begin any time."""
        return [
            (index, length)
            for index, text in enumerate(self._texts)
            for length in range(min(len(text) - 1, len(self._tail)) + 1)
            if self._tail.endswith(text[:length])
        ]

    def reset(self) -> None:
        self._tail = b""
