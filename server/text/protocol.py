"""The border between the HTTP process and a text process: one frame a command, one frame an answer, in order.

Frozen msgspec structs as MessagePack, in the frames of `child/frames.py` over the child's stdin and stdout. A pipe and
not a socket: it needs no name on disk, and it ends with either process. A text process does one thing at a time, so an
answer belongs to the command before it and nothing needs a number.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from server.chat.conversation import Inquiry, Prompt
from server.chat.deltas import TokenArray
from server.chat.encoded import EncodedInquiry, EncodedPrompt
from server.chat.grammar.constraint import Constraint
from server.chat.shapes import Shape
from server.chat.tokenizers.vocabulary import VocabularyTable
from server.chat.tools import FREE, Tool, ToolChoice
from server.errors import ConfigiError, ContextLengthExceeded, InvalidRequest, ModelUnavailable

# Of a float.
_LARGEST = int(sys.float_info.max)


class Open(msgspec.Struct, frozen=True, tag=True):
    """Read tokenizer and template of `folder`. Once, first. `context_length` None: what the folder itself says;
    `conversions`: the folder of tokenizers that were put together."""

    folder: str
    context_length: int | None
    conversions: str | None
    # Bytes of address space that the process may take, where the system can hold it to that.
    memory_limit: int
    # Whether the answer is to have it: it is as large as the tokenizer, and needed once.
    vocabulary: bool


class EncodePrompt(msgspec.Struct, frozen=True, tag=True):
    """`with_offsets`: tell where in its text each token of a raw prompt begins."""

    prompt: Prompt
    with_offsets: bool = False


class EncodeInquiry(msgspec.Struct, frozen=True, tag=True):
    inquiry: Inquiry


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    """`add_special`: for a text; a conversation's template has its own."""

    prompt: Prompt
    add_special: bool


class Constrain(msgspec.Struct, frozen=True, tag=True):
    """What a request asks of its answer. `wire_format`: how the model writes calls. `closing`: words that end a
    thought, `most_bytes`: of a grammar."""

    wire_format: str = "plain"
    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = FREE
    shape: Shape | None = None
    bad_words: tuple[str, ...] = ()
    closing: str = ""
    most_bytes: int = 2**20


class Decode(msgspec.Struct, frozen=True, tag=True):
    tokens: list[int]


TextCommand = Open | EncodePrompt | EncodeInquiry | Tokenize | Constrain | Decode


class Opened(msgspec.Struct, frozen=True, tag=True):
    vocabulary: VocabularyTable | None


class Encoded(msgspec.Struct, frozen=True, tag=True):
    prompt: EncodedPrompt


class Inquired(msgspec.Struct, frozen=True, tag=True):
    inquiry: EncodedInquiry


class Tokenized(msgspec.Struct, frozen=True, tag=True):
    tokens: TokenArray


class Constrained(msgspec.Struct, frozen=True, tag=True):
    constraint: Constraint


class Decoded(msgspec.Struct, frozen=True, tag=True):
    text: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The command's own fault, or the model folder's; `kind` is one of `REFUSALS`."""

    kind: str
    message: str
    param: str | None = None


TextAnswer = Opened | Encoded | Inquired | Tokenized | Constrained | Decoded | Refused

REFUSALS: dict[str, type[ConfigiError]] = {
    cls.__name__: cls for cls in (InvalidRequest, ContextLengthExceeded, ModelUnavailable)
}

_encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(TextCommand).decode
decode_answer = msgspec.msgpack.Decoder(TextAnswer).decode


def encode(message: TextCommand | TextAnswer) -> bytes:
    try:
        return _encode(message)
    except OverflowError:
        # MessagePack ends at 64 bits, and the schemas of clients do not.
        return _encode(_rounded(msgspec.to_builtins(message, builtin_types=(bytes,))))


def _rounded(value: Any) -> Any:
    """With floats in place of integers of more than 64 bits."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(max(-_LARGEST, min(value, _LARGEST)))
    return value
