"""A text with a gap as the prompt that its model was trained on. Text process.

Control tokens spelled in a file are text. What changes least stands first: other files, then the text before the gap
(behind the one that follows it only where the model knows no other order), so that a prefix that was read stays good up
to the place where somebody types.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, chain, takewhile

from server.chat.conversation import Infill, OtherFile
from server.chat.encoded import EncodedPrompt, End
from server.chat.infill_tokens import InfillTokens
from server.chat.prompt import check_fit, check_known, encode_text
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.errors import InvalidRequest

# What files are of, and the one that is being edited is called, where nobody says it: models have learned that names
# stand there, and llama-server writes these.
_REPOSITORY, _FILE = "myproject", "filename"
# What stands in every prompt: the beginning of a text, and three markers.
_ALWAYS = 4


def encode_infill(tokenizer: ChatTokenizer, infill: Infill, context_length: int) -> EncodedPrompt:
    """Raises ContextLengthExceeded when no token is left for an answer, InvalidRequest without the tokens for it."""
    tokens = tokenizer.infill
    if tokens is None:
        raise InvalidRequest(
            "This model has no tokens for filling in the middle: send a prompt without a text behind it.",
            param="suffix",
        )
    near, room = infill, infill.room
    if room is None:
        tokenizer.check_size(
            infill.prefix + infill.suffix + "".join(file.text for file in infill.files), context_length
        )
    else:
        near = _near_the_gap(infill, tokenizer.most_characters(context_length))
    parts = fitting = _encoded(tokenizer, tokens, near)
    if room is not None:
        fitting = _fitting(parts, context_length - min(room, context_length // 4) - _ALWAYS)
    truncated = near != infill or fitting != parts
    ids, ends = _laid_out(tokenizer, tokens, fitting)
    stops = sorted(tokens.ends)
    encoded = EncodedPrompt(ids, ends, tokenizer.decode(ids), stops=stops, goes_on=False, truncated=truncated)
    check_fit(len(ids), context_length)
    check_known(ids, tokenizer)
    return encoded


@dataclass(frozen=True, slots=True)
class _Parts:
    """Token ids. `head` and `last` enclose the other files, if there are any; `line` of the tokens of `prefix` are
    before the line of the gap."""

    head: list[int]
    files: list[list[int]]
    last: list[int]
    prefix: list[int]
    line: int
    suffix: list[int]

    @property
    def others(self) -> list[int]:
        return [*self.head, *chain(*self.files), *self.last] if self.files else []


def _encoded(tokenizer: ChatTokenizer, tokens: InfillTokens, infill: Infill) -> _Parts:
    encode = partial(encode_text, tokenizer)

    def behind(marker: int, text: str) -> list[int]:
        return [marker, *encode(text, goes_on=True)]

    prefix = encode(infill.prefix)
    # What is typed changes the tokens of its own line, and where a line begins they mostly part.
    lines = encode(infill.prefix[: infill.prefix.rfind("\n") + 1])
    agreed = takewhile(lambda pair: pair[0] == pair[1], zip(prefix, lines, strict=False))
    head: list[int] = []
    last: list[int] = []
    if tokens.file is None:
        files = [encode(f"--- {file.name} ---\n\n{file.text}\n\n") for file in infill.files]
    else:
        files = [behind(tokens.file, f"{file.name}\n{file.text}") for file in infill.files]
        last = behind(tokens.file, f"{_FILE}\n")
        if tokens.repository is not None:
            head = behind(tokens.repository, f"{_REPOSITORY}\n")
    suffix = encode(infill.suffix, goes_on=not tokens.suffix_first)
    return _Parts(head, files, last, prefix, sum(1 for _ in agreed), suffix)


def _laid_out(tokenizer: ChatTokenizer, tokens: InfillTokens, parts: _Parts) -> tuple[list[int], list[End]]:
    """The prompt, and its ends: behind the other files, where the line of the gap begins, and at the gap."""
    others = parts.others
    if tokens.suffix_first:
        before = [*tokenizer.beginning, tokens.suffix, *parts.suffix, tokens.prefix, *others]
        shared, after = len(before), []
    else:
        before = [*tokenizer.beginning, *others, tokens.prefix]
        shared = len(before) - 1
        after = [tokens.suffix, *parts.suffix] + ([] if tokens.middle is None else [tokens.middle])
    ends = [End(shared, "system")] if others else []
    gap = len(before) + len(parts.prefix)
    ends += [End(end, "user") for end in dict.fromkeys((len(before) + parts.line, gap))]
    return [*before, *parts.prefix, *after], ends


def _near_the_gap(infill: Infill, most: int) -> Infill:
    """Without what cannot fit whatever its tokens are: work for nothing."""
    files: list[OtherFile] = []
    left = most
    for file in reversed(infill.files):
        left -= len(file.name) + len(file.text)
        if left < 0:
            break
        files.append(file)
    prefix, suffix = infill.prefix[-most:], infill.suffix[:most]
    return Infill(prefix, suffix, tuple(reversed(files)), infill.room)


def _fitting(parts: _Parts, room: int) -> _Parts:
    """Without what has no room: other files go, the first before those behind it; then what is far from the gap, of
    which the text behind it gets a quarter."""
    left = room - len(parts.prefix) - len(parts.suffix) - len(parts.head) - len(parts.last)
    sizes = accumulate(map(len, reversed(parts.files)))
    kept = sum(1 for _ in takewhile(lambda size: size <= left, sizes))
    files = parts.files[len(parts.files) - kept :]
    if len(parts.prefix) + len(parts.suffix) <= room:
        return replace(parts, files=files)
    suffix = parts.suffix[: max(room // 4, room - len(parts.prefix))]
    gone = max(0, len(parts.prefix) + len(suffix) - room)
    return replace(parts, files=[], prefix=parts.prefix[gone:], line=max(0, parts.line - gone), suffix=suffix)
