"""A text with a gap as the prompt that its model was trained on. Text process.

Control tokens spelled in a file are text. What changes least stands first: other files, then the text before the gap
(behind the one that follows it only where the model knows no other order), so that a prefix that was read stays good up
to the place where somebody types.
"""

from __future__ import annotations

from itertools import takewhile

from server.chat.conversation import Infill
from server.chat.encoded import EncodedPrompt, End
from server.chat.infill_tokens import InfillTokens
from server.chat.prompt import checked, encode_text
from server.chat.tokenizer import ChatTokenizer
from server.errors import InvalidRequest

# What files are of, and the one that is being edited is called, where nobody says it: models have learned that names
# stand there, and llama-server writes these.
_REPOSITORY, _FILE = "myproject", "filename"


def encode_infill(tokenizer: ChatTokenizer, infill: Infill, context_length: int) -> EncodedPrompt:
    """Raises ContextLengthExceeded when no token is left for an answer, InvalidRequest without the tokens for it."""
    if tokenizer.infill is None:
        raise InvalidRequest(
            "This model has no tokens for filling in the middle: send a prompt without a text behind it.",
            param="suffix",
        )
    tokenizer.check_size("".join((infill.prefix, infill.suffix, *(file.text for file in infill.files))), context_length)
    writing = _Writing(tokenizer, tokenizer.infill)
    if tokenizer.infill.suffix_first:
        writing.suffix_first(infill)
    else:
        writing.prefix_first(infill)
    ends = sorted(tokenizer.infill.ends)
    return checked(tokenizer, EncodedPrompt(writing.ids, writing.ends, writing.text, None, ends, False), context_length)


class _Writing:
    """`ends`: behind the other files, where the line of the gap begins, and at the gap."""

    def __init__(self, tokenizer: ChatTokenizer, tokens: InfillTokens) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self.ids: list[int] = tokenizer.beginning
        self.text = ""
        self.ends: list[End] = []

    def prefix_first(self, infill: Infill) -> None:
        if infill.files:
            self._other_files(infill)
            self.ends.append(End(len(self.ids), "system"))
        self._token(self._tokens.prefix)
        self._before_the_gap(infill.prefix)
        self._token(self._tokens.suffix)
        self._text(infill.suffix, goes_on=True)
        if self._tokens.middle is not None:
            self._token(self._tokens.middle)

    def suffix_first(self, infill: Infill) -> None:
        self._token(self._tokens.suffix)
        self._text(infill.suffix)
        self._token(self._tokens.prefix)
        if infill.files:
            self._other_files(infill)
            self.ends.append(End(len(self.ids), "system"))
        self._before_the_gap(infill.prefix)

    def _other_files(self, infill: Infill) -> None:
        if self._tokens.file is None:
            for file in infill.files:
                self._text(f"--- {file.name} ---\n\n{file.text}\n\n")
            return
        if self._tokens.repository is not None:
            self._token(self._tokens.repository)
            self._text(f"{_REPOSITORY}\n", goes_on=True)
        for file in infill.files:
            self._token(self._tokens.file)
            self._text(f"{file.name}\n{file.text}", goes_on=True)
        self._token(self._tokens.file)
        self._text(f"{_FILE}\n", goes_on=True)

    def _before_the_gap(self, prefix: str) -> None:
        """What is typed changes the tokens of its own line, and where a line begins they mostly part."""
        begin = len(self.ids)
        self._text(prefix)
        lines = encode_text(self._tokenizer, prefix[: prefix.rfind("\n") + 1])
        pairs = zip(self.ids[begin:], lines, strict=False)
        agreed = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.ends += [End(end, "user") for end in dict.fromkeys((begin + agreed, len(self.ids)))]

    def _token(self, token: int) -> None:
        self.ids.append(token)
        self.text += self._tokenizer.decode([token])

    def _text(self, text: str, *, goes_on: bool = False) -> None:
        """`goes_on`: no space is put in front of it, where the tokenizer puts one in front of a text."""
        self.ids += encode_text(self._tokenizer, text, goes_on=goes_on)
        self.text += text
