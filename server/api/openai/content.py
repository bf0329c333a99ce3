"""The content of a chat message, in every shape that clients send -> text and reasoning. HTTP process.

URLs and data of parts that hold something other than text are never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from server.api.wire import shown
from server.chat.parts import Part, ReasoningPart, TextPart
from server.errors import InvalidRequest, UnsupportedField

_IMAGES = ("image_url", "input_image", "image")
_OTHERS = ("input_audio", "audio_url", "video_url", "file", "input_file", "document")
_TEXTS = ("text", "input_text", "output_text")
# Types of parts with the key of their text.
_TEXT_KEYS = {**dict.fromkeys(_TEXTS, "text"), "refusal": "refusal", "thinking": "thinking", "reasoning": "text"}
_REASONING = ("thinking", "reasoning")
OMITTED_IMAGE = "[image omitted]"
# A hint to cache a prefix; here prefixes are kept without being asked for.
ACCEPTED_KEY = "cache_control"


@dataclass(frozen=True, slots=True)
class ContentRules:
    """`omit_images`: an image becomes a note that says so, instead of an error."""

    omit_images: bool = False


def content_parts(content: Any, rules: ContentRules, where: str, *, thoughts: bool = False) -> tuple[Part, ...]:
    """Text parts that follow one another are one. Absent and null are no part at all. `thoughts` may be among them.

    Raises InvalidRequest, and UnsupportedField for what is not text.
    """
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts, not {shown(content)}.", param=where)
    parts: list[Part] = []
    for index, item in enumerate(content):
        part = _part(item, rules, f"{where}.{index}", thoughts=thoughts)
        if parts and isinstance(part, TextPart) and isinstance(parts[-1], TextPart):
            parts[-1] = TextPart(parts[-1].text + part.text)
        else:
            parts.append(part)
    return tuple(parts)


def images_part(images: Any, rules: ContentRules, where: str) -> tuple[TextPart, ...]:
    """Ollama's list of images beside the content."""
    if not images:
        return ()
    if not isinstance(images, list):
        raise InvalidRequest(f"{where} must be a list of images, not {shown(images)}.", param=where)
    return tuple(_image(rules, f"{where}.{index}") for index in range(len(images)))


def dropped_keys(content: Any) -> Iterator[str]:
    """Of content that has been read: keys of its parts that mean nothing here."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type")
        if kind in _TEXT_KEYS:
            known = ("type", _TEXT_KEYS[kind], ACCEPTED_KEY)
            yield from (key for key, value in part.items() if key not in known and value is not None)


def _part(part: Any, rules: ContentRules, where: str, *, thoughts: bool) -> TextPart | ReasoningPart:
    if not isinstance(part, dict):
        raise InvalidRequest(f"{where} must be an object, not {shown(part)}.", param=where)
    kind = part.get("type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"{where}.type must be text, not {shown(kind)}.", param=f"{where}.type")
    if kind in _TEXT_KEYS and (thoughts or kind not in _REASONING):
        key = _TEXT_KEYS[kind]
        text = part.get(key)
        if not isinstance(text, str):
            raise InvalidRequest(f"{where}.{key} must be a string, not {shown(text)}.", param=f"{where}.{key}")
        return ReasoningPart(text) if kind in _REASONING else TextPart(text)
    if kind in _IMAGES:
        return _image(rules, where)
    if kind in _OTHERS:
        raise UnsupportedField(f"{where} is of type {kind}, which is not supported: content is text.", param=where)
    raise InvalidRequest(f"{where}.type must be text, not {shown(kind)}.", param=f"{where}.type")


def _image(rules: ContentRules, where: str) -> TextPart:
    if rules.omit_images:
        return TextPart(OMITTED_IMAGE)
    raise UnsupportedField(
        f"{where} is an image, and the model reads text; "
        f'with limits.images = "omit" in the settings, {OMITTED_IMAGE} stands in its place.',
        param=where,
    )
