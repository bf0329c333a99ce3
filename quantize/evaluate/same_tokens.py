"""Whether two models mean the same by a token: else the figures would be of one text against another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantize.errors import SourceError
from quantize.evaluate.texts import Passage
from quantize.folder.model_files import TOKENIZERS
from quantize.forward.tokenizer import tokenizer_in, tokenizer_of
from quantize.source.checkpoint import HubOptions
from quantize.source.sources import open_checkpoint

# Of the tokens that the text has: a fine-tune gives some control tokens another name.
_MOST_RENAMED = 0.05


def check_same_tokens(found: Sequence[Passage], tokenizer: Any, reference: str, hub: HubOptions) -> None:
    """Raises SourceError where the tokenizer of `reference` spells the tokens of the passages otherwise.

    A reference without a tokenizer, such as a folder of weights alone, is taken at its word.
    """
    theirs = _of_reference(reference, hub)
    if theirs is None:
        return
    used = sorted({token for passage in found for token in passage.tokens})
    spelled = [_spelled(one, used) for one in (tokenizer, theirs)]
    other = sum(ours != their for ours, their in zip(*spelled, strict=True))
    if other > _MOST_RENAMED * len(used):
        raise SourceError(
            "The model and the reference have different tokenizers: "
            f"of the {len(used):,} tokens in the text, {other:,} are something else in the other one."
        )


def _of_reference(reference: str, hub: HubOptions) -> Any:
    folder = Path(reference).expanduser()
    if folder.is_dir():
        there = any((folder / name).is_file() for name in TOKENIZERS)
        return tokenizer_in(folder, "the reference") if there else None
    checkpoint = open_checkpoint(reference, hub)
    files = checkpoint.auxiliary_files()
    return tokenizer_of(checkpoint.config, files, "the reference") if files.keys() & TOKENIZERS else None


def _spelled(tokenizer: Any, tokens: Sequence[int]) -> list[str | None]:
    """As the vocabulary has them; None for one that it does not have."""
    names = {number: name for name, number in tokenizer.get_vocab().items()}
    return [names.get(token) for token in tokens]
