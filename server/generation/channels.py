"""Which parser reads the answers to a request: that of the model's wire format, for the tools that may be called."""

from __future__ import annotations

from collections.abc import Callable

from server.chat.channels import Channels, TextOnly
from server.chat.conversation import GenerationRequest, RawPrompt
from server.chat.encoded import EncodedPrompt
from server.chat.formats.choose import FORMATS
from server.chat.tools import Tool
from server.chat.vocabulary import Vocabulary

# Enough for the marker that opens a thought, and what stands around it.
_TAIL = 256


def callable_tools(request: GenerationRequest) -> tuple[Tool, ...]:
    if isinstance(request.prompt, RawPrompt) or request.options.tool_choice.mode == "none":
        return ()
    return request.options.tool_choice.allowed(request.prompt.tools)


def channels_of(
    request: GenerationRequest, vocabulary: Vocabulary, prompt: EncodedPrompt, *, held: bool
) -> Callable[[], Channels | None]:
    """Makes the parser of one choice; None where all of it is text. `held`: a grammar holds the calls."""
    # What continues a raw prompt is nothing but text: it has its markers from its caller.
    if isinstance(request.prompt, RawPrompt):
        return lambda: None
    chosen, tools, tail = FORMATS[vocabulary.wire_format], callable_tools(request), prompt.text[-_TAIL:]

    def new_channels() -> Channels | None:
        channels = chosen.channels(vocabulary, tools, tail, held=held)
        return None if isinstance(channels, TextOnly) else channels

    return new_channels
