"""Which parser reads the answers to a request: that of the model's wire format, for the tools that may be called."""

from __future__ import annotations

from collections.abc import Callable

from server.chat.channels import Channels, TextOnly
from server.chat.conversation import Conversation, GenerationRequest
from server.chat.encoded import EncodedPrompt
from server.chat.formats.choose import FORMATS
from server.chat.formats.format import WireFormat
from server.chat.tokenizers.vocabulary import Vocabulary
from server.chat.tools import Tool
from server.settings.types import ModelSettings

# Enough for the marker that opens a thought, and what stands around it.
_TAIL = 256


def wire_format(entry: ModelSettings, vocabulary: Vocabulary) -> WireFormat:
    """The configured one, else that of the model's template."""
    return FORMATS[vocabulary.wire_format if entry.wire_format == "auto" else entry.wire_format]


def callable_tools(request: GenerationRequest) -> tuple[Tool, ...]:
    if not isinstance(request.prompt, Conversation) or request.options.tool_choice.mode == "none":
        return ()
    return request.options.tool_choice.allowed(request.prompt.tools)


def channels_of(
    request: GenerationRequest, chosen: WireFormat, vocabulary: Vocabulary, prompt: EncodedPrompt, *, held: bool
) -> Callable[[], Channels | None]:
    """Makes the parser of one choice; None where all of it is text. `held`: a grammar holds the calls."""
    # What continues a raw prompt is nothing but text: it has its markers from its caller.
    if not isinstance(request.prompt, Conversation):
        return lambda: None
    tools, tail = callable_tools(request), prompt.text[-_TAIL:]

    def new_channels() -> Channels | None:
        channels = chosen.channels(vocabulary, tools, tail, held=held)
        return None if isinstance(channels, TextOnly) else channels

    return new_channels
