"""What a message is made of, free of any wire protocol: frozen parts, in the order in which they were said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """`data` is the encoded image, `media_type` its MIME type. No model sees it yet."""

    data: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """What the assistant thought before it spoke."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A call of the assistant's. `arguments` is JSON text, as the model wrote it or the client sent it back."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolResultPart:
    """What a tool returned to the call `call_id`; `name` is the tool's, where the client says it."""

    call_id: str
    text: str
    name: str | None = None


Part = TextPart | ImagePart | ReasoningPart | ToolCallPart | ToolResultPart


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @staticmethod
    def plain(role: Role, text: str) -> Message:
        return Message(role, (TextPart(text),))

    @property
    def text(self) -> str:
        """Its text: that of its text parts and tool results, one after the other."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart | ToolResultPart))
