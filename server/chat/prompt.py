"""Prompt to token ids: template, control tokens, checkpoints, context limit. Text process.

Special-token policy: in a conversation only the template may write control tokens. Where a message spells one
(`<|im_end|>`), it is encoded as plain characters: no message can end its turn or forge another's.
A raw prompt is the caller's own rendering, and control tokens spelled in it are control tokens.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from server.chat.conversation import Conversation, RawPrompt
from server.chat.encoded import EncodedPrompt, End
from server.chat.templates.history import declaration
from server.chat.templates.template import ChatTemplate, Rendered
from server.chat.templates.template_values import strings_in, template_values
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.errors import ContextLengthExceeded, InvalidRequest

# Unicode's noncharacters, the last of which the template module keeps for itself.
_MARKS = [chr(code) for code in range(0xFDD0, 0xFDEF)]


def encode_prompt(
    tokenizer: ChatTokenizer,
    template: ChatTemplate,
    prompt: Conversation | RawPrompt,
    context_length: int,
    *,
    with_offsets: bool = False,
) -> EncodedPrompt:
    """Raises ContextLengthExceeded when no token is left for an answer, InvalidRequest for all else."""
    if isinstance(prompt, RawPrompt):
        encoded = _raw(tokenizer, prompt.content, context_length, with_offsets)
    else:
        encoded = _conversation(tokenizer, template, prompt, context_length)
    check_fit(len(encoded.ids), context_length)
    check_known(encoded.ids, tokenizer)
    return encoded


def check_fit(tokens: int, context_length: int) -> None:
    if tokens >= context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens, but the prompt has {tokens}."
        )


def check_known(ids: Sequence[int], tokenizer: ChatTokenizer) -> None:
    """A tokenizer may know tokens that were never trained; MLX would read memory beyond the embedding."""
    if max(ids) >= tokenizer.vocab_size or min(ids) < 0:
        raise InvalidRequest(
            f"The prompt holds a token id outside the model's vocabulary, 0 to {tokenizer.vocab_size - 1}."
        )


def _raw(
    tokenizer: ChatTokenizer, content: str | tuple[int, ...], context_length: int, with_offsets: bool
) -> EncodedPrompt:
    offsets: list[int] | None = None
    if isinstance(content, str):
        tokenizer.check_size(content, context_length)
        if with_offsets:
            ids, offsets = tokenizer.encode_with_offsets(content)
        else:
            ids = tokenizer.encode(content, add_special=True)
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id:
            # The caller spelled it and the tokenizer added it.
            del ids[0]
            offsets = offsets[1:] if offsets is not None else None
        text = content
    else:
        ids = list(content)
        # The context first: decoding a list that is too long is work for nothing.
        text = tokenizer.decode(ids) if len(ids) < context_length else ""
        offsets = tokenizer.offsets(ids) if with_offsets else None
    if not ids:
        ids, offsets = [_first_token(tokenizer)], [0] if with_offsets else None
    return EncodedPrompt(ids, [], text, offsets)


def _first_token(tokenizer: ChatTokenizer) -> int:
    """What an empty prompt begins with: BOS, which for GPT-2's family is the end-of-text token."""
    if tokenizer.bos_id is not None:
        return tokenizer.bos_id
    if tokenizer.eos_ids:
        return min(tokenizer.eos_ids)
    raise InvalidRequest("The prompt is empty, and this model has no token to begin a text with.", param="prompt")


def _conversation(
    tokenizer: ChatTokenizer, template: ChatTemplate, conversation: Conversation, context_length: int
) -> EncodedPrompt:
    mark = unused_marks(conversation)[0]
    rendered = template.render(conversation, spelling_defuser(tokenizer.special_texts, mark))
    tokenizer.check_size(rendered.text, context_length)
    ids, boundaries = encode_segments(tokenizer, rendered, mark)
    if not ids:
        raise InvalidRequest("The chat template renders nothing for this conversation.", param="messages")
    return EncodedPrompt(ids, boundaries, rendered.text.replace(mark, ""))


def encode_text(tokenizer: ChatTokenizer, text: str, *, goes_on: bool = False) -> list[int]:
    """Tokens of `text` without any control token, whatever it spells. `goes_on`: there is text before it."""
    mark = _marks_outside([text])[0]
    defuse = spelling_defuser(tokenizer.special_texts, mark)
    return encode_segments(tokenizer, Rendered(defuse(text), ()), mark, goes_on=goes_on)[0]


def unused_marks(conversation: Conversation, needed: int = 1) -> list[str]:
    """Characters that nothing of the conversation holds."""
    strings = [value for value in conversation.template_variables.values() if isinstance(value, str)]
    for message in conversation.messages:
        strings += strings_in(template_values(message, str))
    for tool in conversation.tools:
        strings += strings_in(declaration(tool))
    return _marks_outside(strings, needed)


def _marks_outside(strings: Sequence[str], needed: int = 1) -> list[str]:
    marks = [mark for mark in _MARKS if not any(mark in text for text in strings)]
    if len(marks) < needed:
        raise InvalidRequest("The prompt holds every noncharacter of Unicode.")
    return marks


def spelling_defuser(special_texts: Sequence[str], mark: str) -> Callable[[str], str]:
    """Puts `mark` behind the first character of every control token that is spelled in a text."""
    texts = tuple(text for text in special_texts if len(text) > 1)
    if not texts:
        return str
    spelled, inside = _patterns(texts)

    def defuse(text: str) -> str:
        return inside.sub(lambda match: match[1] + mark, text) if spelled.search(text) else text

    return defuse


# Of one model, mostly; ten milliseconds for a thousand control tokens, and a prompt may have many texts.
@functools.lru_cache(maxsize=4)
def _patterns(texts: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds any of `texts`, and what matches the first character of each. Looking ahead finds overlapping
    spellings too, at several times the cost."""
    any_of_them = _pattern(texts)
    return re.compile(any_of_them), re.compile(f"(?={any_of_them})(.)", re.DOTALL)


def _pattern(texts: Sequence[str]) -> str:
    """A regular expression for any of `texts` that looks at a character once: side by side, hundreds of spellings that
    begin alike are tried one after the other wherever the beginning stands."""
    tails: dict[str, list[str]] = {}
    for text in texts:
        tails.setdefault(text[:1], []).append(text[1:])
    if "" in tails:
        # One of them ends here, and it is as good as a longer one.
        return ""
    return "(?:" + "|".join(re.escape(head) + _pattern(rest) for head, rest in tails.items()) + ")"


def encode_segments(
    tokenizer: ChatTokenizer, rendered: Rendered, mark: str, *, goes_on: bool = False
) -> tuple[list[int], list[End]]:
    """Each segment between marks on its own, so that the two halves of a spelled control token never meet. `goes_on`:
    there is text before it."""
    ids: list[int] = []
    boundaries: list[End] = []
    start = 0
    for segment in rendered.text.split(mark):
        for at, piece in _well_read(tokenizer, segment, start):
            stop = at + len(piece)
            # Where the model goes on behind a result in the same turn, a message ends with the prompt.
            last = stop == len(rendered.text)
            ends = {end.offset - at: end.role for end in rendered.ends if at <= end.offset < stop + last}
            tokens, found = tokenizer.encode_with_borders(piece, ends, goes_on=goes_on or at > 0)
            boundaries += [End(len(ids) + offset, ends[border]) for border, offset in found.items()]
            ids += tokens
        start += len(segment) + len(mark)
    return ids, boundaries


def _well_read(tokenizer: ChatTokenizer, segment: str, start: int) -> list[tuple[int, str]]:
    """`segment`, which starts at `start`, cut behind the first character of whatever only a normalizer makes a control
    token of; again as long as cutting uncovers more."""
    pieces = [(start, segment)]
    while True:
        cut = []
        for at, piece in pieces:
            edges = [0, *(begin + 1 for begin in tokenizer.misread(piece)), len(piece)]
            cut += [(at + left, piece[left:right]) for left, right in pairwise(edges) if left < right]
        if len(cut) <= len(pieces):
            return cut
        pieces = cut
