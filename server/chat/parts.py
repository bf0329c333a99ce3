"""What a message is made of, free of any wire protocol: frozen parts, in the order in which they were said.

Structs, because a conversation crosses to the text process as it is.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]


class TextPart(msgspec.Struct, frozen=True, tag=True):
    text: str


class ImagePart(msgspec.Struct, frozen=True, tag=True):
    """`data` is the encoded image, `media_type` its MIME type. No model sees it yet."""

    data: bytes
    media_type: str


class ReasoningPart(msgspec.Struct, frozen=True, tag=True):
    """What the assistant thought before it spoke."""

    text: str


class ToolCallPart(msgspec.Struct, frozen=True, tag=True):
    """A call of the assistant's. `arguments` is JSON text, as the model wrote it or the client sent it back."""

    id: str
    name: str
    arguments: str


class ToolResultPart(msgspec.Struct, frozen=True, tag=True):
    """What a tool returned to the call `call_id`; `name` is the tool's, where the client says it."""

    call_id: str
    text: str
    name: str | None = None


Part = TextPart | ImagePart | ReasoningPart | ToolCallPart | ToolResultPart


class Message(msgspec.Struct, frozen=True):
    role: Role
    parts: tuple[Part, ...]

    @staticmethod
    def plain(role: Role, text: str) -> Message:
        return Message(role, (TextPart(text),))

    @property
    def text(self) -> str:
        """Its text: that of its text parts and tool results, one after the other."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart | ToolResultPart))
