"""The text process: `python -m server.text.process`. Template and tokenizer of one model, one command after the other.

What a text or the files of a model make expensive happens here, where it can be killed: a template that never ends, a
tokenizer whose regular expression is quadratic, a normalizer that takes all memory. It ends with its parent, whose end
closes stdin.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sys
import time
from pathlib import Path
from typing import BinaryIO

import msgspec

from quantize.printable import echo
from server.allocator import give_back, keep_little
from server.chat.conversation import Prompt, RawPrompt
from server.chat.deltas import TokenArray
from server.chat.grammar.constraint import Constraint
from server.chat.processor import Processor
from server.chat.tokenizers.conversion import Conversions
from server.child.frames import read_frame, write_frame
from server.errors import ConfigiError, InvalidRequest
from server.text.protocol import (
    REFUSALS,
    Constrain,
    Constrained,
    Decode,
    Decoded,
    Encoded,
    EncodeInquiry,
    EncodePrompt,
    Inquired,
    Open,
    Opened,
    Refused,
    TextAnswer,
    TextCommand,
    Tokenize,
    Tokenized,
    decode_command,
    encode,
)

# After a command that took longer, what it has freed is given back; after the others it is too little.
_LONG_S = 0.02


def serve(commands: BinaryIO, answers: BinaryIO) -> None:
    """Answer until `commands` ends."""
    processor: Processor | None = None
    while (raw := read_frame(commands)) is not None:
        begun = time.monotonic()
        command = decode_command(raw)
        answer: TextAnswer
        try:
            if isinstance(command, Open):
                _bound_memory(command.memory_limit)
                kept = Conversions(Path(command.conversions) if command.conversions else None)
                processor = Processor.load(Path(command.folder), command.context_length, kept)
                answer = Opened(processor.table() if command.vocabulary else None)
            elif processor is None:
                raise RuntimeError("the first command must be Open")
            else:
                answer = _answer(processor, command)
        except MemoryError:
            answer = Refused(InvalidRequest.__name__, "This needs more memory than limits.text_memory_limit allows.")
        except ConfigiError as error:
            answer = _refused(error)
        except BaseException as error:
            # Panics of Rust are no Exception. The process is fit for the next command, or will be found out.
            echo(f"{type(error).__name__}: {error}", err=True)
            answer = Refused(InvalidRequest.__name__, "The model's tokenizer or template fails on this text.")
        write_frame(answers, encode(answer))
        if time.monotonic() - begun > _LONG_S:
            del raw, command, answer
            give_back()


def _answer(processor: Processor, command: TextCommand) -> TextAnswer:
    match command:
        case EncodePrompt():
            return Encoded(processor.encode_prompt(command.prompt, with_offsets=command.with_offsets))
        case EncodeInquiry():
            return Inquired(processor.encode_inquiry(command.inquiry))
        case Tokenize():
            ids = _tokenize(processor, command.prompt, command.add_special)
            return Tokenized(TokenArray(len(ids), msgspec.json.encode(ids)))
        case Constrain():
            return Constrained(_constraint(processor, command))
        case Decode():
            return Decoded(processor.tokenizer.decode(command.tokens))
        case Open():
            raise RuntimeError("Open comes once")


def _tokenize(processor: Processor, prompt: Prompt, add_special: bool) -> list[int]:
    if isinstance(prompt, RawPrompt) and isinstance(prompt.content, str):
        # As it is: an empty text has no tokens, and a prompt would have.
        return processor.tokenizer.encode(prompt.content, add_special)
    return processor.encode_prompt(prompt, with_offsets=False).ids


def _constraint(processor: Processor, command: Constrain) -> Constraint:
    # Only here: a server without grammars does not load llguidance into this process.
    from server.chat.formats.choose import FORMATS
    from server.chat.grammar.compose import Composer

    composer = Composer(FORMATS[command.wire_format], processor.vocabulary, command.most_bytes)
    grammar, banned, notes = composer.compose(command.tools, command.choice, command.shape)
    encode = processor.tokenizer.encode
    # Within a text a word begins with a space, and at its start it does not.
    spelled = [encode(text, False) for word in command.bad_words for text in (word, f" {word}") if word]
    closing = encode(command.closing, False) if command.closing else []
    return Constraint(grammar, banned + list(map(list, dict.fromkeys(map(tuple, spelled)))), closing, notes)


def _refused(error: ConfigiError) -> Refused:
    kind = next((name for name, cls in REFUSALS.items() if type(error) is cls), None)
    if kind is None:
        kind = next(name for name, cls in REFUSALS.items() if isinstance(error, cls))
    return Refused(kind, error.message, error.param)


def _bound_memory(limit: int) -> None:
    """macOS takes the call and does not hold to it; there the parent looks at the resident size."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    keep_little()
    # For the libraries that may be imported later: nothing here needs the network, or says what is no fault.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    serve(sys.stdin.buffer, sys.stdout.buffer)
    # All memory goes back with the process: the collector need not look through it first.
    gc.freeze()


if __name__ == "__main__":
    main()
