"""Questions about one conversation as token ids: what they share once, and of each what it adds. Text process.

The template renders the conversation with a mark in the question's place, so that what stands before it is rendered
and tokenized once for all of them. Options are tokenized in the answer's own place: where the template writes an answer
with reasoning off, behind whatever it puts before an answer's text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from msgspec.structs import replace

from server.chat.conversation import Conversation, Inquiry, Reasoning
from server.chat.encoded import EncodedInquiry, EncodedQuestion, End
from server.chat.formats.choose import FORMATS
from server.chat.formats.family import THINK
from server.chat.parts import Message, TextPart
from server.chat.prompt import check_fit, check_known, encode_segments, spelling_defuser, unused_marks
from server.chat.templates.template import ChatTemplate, Rendered
from server.chat.templates.turns import Messages
from server.chat.tokenizers.tokenizer import ChatTokenizer
from server.errors import InvalidRequest

_OFF = Reasoning(enabled=False)


@dataclass(frozen=True, slots=True)
class _Layout:
    """What stands before a question, and between it and its answer. `lead`: spaces before the answer's text, which
    belong to its first token. `end`: what follows an answer."""

    before: Rendered
    between: str
    lead: str
    end: str


def encode_inquiry(
    tokenizer: ChatTokenizer, template: ChatTemplate, inquiry: Inquiry, context_length: int
) -> EncodedInquiry:
    """Raises ContextLengthExceeded when a question and its longest option do not fit, InvalidRequest for all else."""
    texts = [text for question in inquiry.questions for text in (question.text, *question.options)]
    everything = Conversation((*inquiry.messages, *(Message.plain("user", text) for text in texts)))
    mark, asked, answered = unused_marks(everything, 3)[:3]
    defuse = spelling_defuser(tokenizer.special_texts, mark)
    layout = _layout(template, _with_place(inquiry, asked), defuse, asked, answered)
    tokenizer.check_size(layout.before.text, context_length)
    ids, boundaries = encode_segments(tokenizer, layout.before, mark)
    check_fit(len(ids), context_length)
    check_known(ids, tokenizer)

    def encode(text: str) -> list[int]:
        """What goes on from other text."""
        tokenizer.check_size(text, context_length)
        return encode_segments(tokenizer, Rendered(text, ()), mark, goes_on=True)[0]

    @cache
    def encode_option(option: str) -> tuple[int, ...]:
        return _behind(layout.between, layout.lead + defuse(option), encode)

    end = _end_token(tokenizer, encode(layout.end))
    questions = []
    for index, question in enumerate(inquiry.questions):
        tail = encode(defuse(question.text) + layout.between)
        options = _told_apart([encode_option(option) for option in question.options], end, f"questions.{index}")
        check_fit(len(ids) + len(tail) + max(map(len, options)), context_length)
        check_known([*tail, *(token for option in options for token in option)], tokenizer)
        questions.append(EncodedQuestion(tail, options))
    first = layout.before.text + inquiry.questions[0].text + layout.between
    return EncodedInquiry(ids, [*boundaries, End(len(ids), "user")], questions, first.replace(mark, ""))


def _with_place(inquiry: Inquiry, asked: str) -> Messages:
    """The messages, with the place of a question at the end of what the user says last."""
    *before, last = inquiry.messages
    place = TextPart(f"{inquiry.preface}\n\n{asked}")
    if last.role != "user":
        return (*inquiry.messages, Message("user", (place,)))
    return (*before, replace(last, parts=(*last.parts, TextPart("\n\n"), place)))


def _layout(
    template: ChatTemplate, messages: Messages, defuse: Callable[[str], str], asked: str, answered: str
) -> _Layout:
    rendered = template.render(Conversation(messages, reasoning=_OFF), defuse)
    before, place, between = rendered.text.partition(asked)
    if not place or not before or asked in between:
        raise InvalidRequest("This model's chat template has no one place for a question.", param="input")
    closed = Conversation((*messages, Message.plain("assistant", answered)), reasoning=_OFF, open=False)
    try:
        head, found, end = template.render(closed, defuse).text.rpartition(answered)
    except InvalidRequest:
        head, found, end = "", "", ""
    opening = head.removeprefix(rendered.text) if found and head.startswith(rendered.text) else ""
    opening += _closed_thought(template, between + opening)
    lead = opening[len(opening.rstrip(" ")) :]
    ends = tuple(end for end in rendered.ends if end.offset <= len(before))
    return _Layout(Rendered(before, ends), between + opening.removesuffix(lead), lead, end)


def _closed_thought(template: ChatTemplate, between: str) -> str:
    """What ends a thought that the template opens although it was told not to."""
    known = (FORMATS[template.wire_format].thought, THINK)
    opened = (thought for thought in known if thought and between.rstrip().endswith(thought.begin.rstrip()))
    return next((thought.closing for thought in opened), "")


def _behind(context: str, text: str, encode: Callable[[str], list[int]]) -> tuple[int, ...]:
    """The tokens of `text` behind `context`; where the two would share one, which no answer can, those of it alone."""
    before, whole = encode(context), encode(context + text)
    apart = whole[: len(before)] == before and len(whole) > len(before)
    return tuple(whole[len(before) :] if apart else encode(text))


def _end_token(tokenizer: ChatTokenizer, end: Sequence[int]) -> list[int]:
    if end and end[0] in tokenizer.eos_ids:
        return [end[0]]
    return sorted(tokenizer.eos_ids)[:1]


def _told_apart(options: Sequence[tuple[int, ...]], end: list[int], where: str) -> list[list[int]]:
    """The options, all with the end of the answer behind them if one begins with another."""
    in_order = sorted(options)
    if any(not option for option in options) or any(a == b for a, b in pairwise(in_order)):
        raise InvalidRequest(f"Two options of {where} are the same text for this model, or one is none.", param=where)
    # In this order the first that begins with another follows it.
    begins = any(b[: len(a)] == a for a, b in pairwise(in_order))
    return [[*option, *(end if begins else [])] for option in options]
