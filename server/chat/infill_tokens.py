"""The tokens by which models are told to fill in the middle, by family. Pure.

A vocabulary tells which of them a model has, not how well it was trained to use them: models for chat often share the
vocabulary of the code model beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Family:
    """Spellings. `repository` and `file`, of which a vocabulary has one each or none, stand before the names of what
    follows. `ends`: beside all of the others, what such a model ends its answer with."""

    prefix: str
    suffix: str
    middle: str | None
    repository: tuple[str, ...] = ()
    file: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    suffix_first: bool = False

    @property
    def texts(self) -> Iterable[str]:
        middle = () if self.middle is None else (self.middle,)
        return (self.prefix, self.suffix, *middle, *self.repository, *self.file, *self.ends)


_FAMILIES = (
    # Qwen 2.5 Coder and 3 Coder, CodeGemma, Granite 4.
    _Family(
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        repository=("<|repo_name|>", "<|reponame|>"),
        file=("<|file_sep|>", "<|filename|>"),
        ends=("<|fim_pad|>", "<|file_separator|>", "<|endoftext|>"),
    ),
    # StarCoder and StarCoder 2, Granite Code and 3.
    _Family(
        "<fim_prefix>",
        "<fim_suffix>",
        "<fim_middle>",
        repository=("<repo_name>", "<reponame>"),
        file=("<file_sep>", "<filename>"),
        ends=("<fim_pad>", "<|endoftext|>"),
    ),
    # SantaCoder.
    _Family("<fim-prefix>", "<fim-suffix>", "<fim-middle>", ends=("<fim-pad>", "<|endoftext|>")),
    # Code Llama.
    _Family("▁<PRE>", "▁<SUF>", "▁<MID>", ends=("▁<EOT>",)),
    _Family("<PRE>", "<SUF>", "<MID>", ends=("<EOT>",)),
    # DeepSeek Coder and Coder V2: the middle token stands at the end.
    _Family("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    # Codestral: the prompt ends with the text before the gap.
    _Family("[PREFIX]", "[SUFFIX]", None, ends=("[MIDDLE]",), suffix_first=True),
)  # fmt: skip

INFILL_TEXTS = frozenset(text for family in _FAMILIES for text in family.texts)


@dataclass(frozen=True, slots=True)
class InfillTokens:
    """Those of one model. `suffix_first`: the text behind the gap stands before the one in front of it."""

    prefix: int
    suffix: int
    middle: int | None
    repository: int | None
    file: int | None
    ends: frozenset[int]
    suffix_first: bool


def infill_tokens(token: Callable[[str], int | None]) -> InfillTokens | None:
    """`token`: the one that is spelled so and that ordinary text never becomes. None for a model without them."""
    for family in _FAMILIES:
        prefix, suffix = token(family.prefix), token(family.suffix)
        middle = None if family.middle is None else token(family.middle)
        if prefix is None or suffix is None or (middle is None) != (family.middle is None):
            continue
        return InfillTokens(
            prefix,
            suffix,
            middle,
            _first(map(token, family.repository)),
            _first(map(token, family.file)),
            frozenset(found for text in family.texts if (found := token(text)) is not None),
            family.suffix_first,
        )
    return None


def _first(tokens: Iterable[int | None]) -> int | None:
    return next((token for token in tokens if token is not None), None)
