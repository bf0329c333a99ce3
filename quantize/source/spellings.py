"""Names of tensors that mlx-lm 0.32 does not take as they are published, in those that it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantize.source.standins import Standin

Rename = Callable[[str], str]
# Deeper than any tool wraps a model.
_MOST_WRAPPERS = 3


def prefixes(names: Iterable[str]) -> Iterator[Rename]:
    """Other beginnings to try where names have no place in a model; whether all of them have one then, the model tells.

    Without the wrappers that training leaves (`module.`, `_orig_mod.`, `base_model.model.`) or an older class
    (`transformer.`); and with `model.`, which a model that was saved without its head lacks.
    """
    names = list(names)
    begin = ""
    for _ in range(_MOST_WRAPPERS):
        firsts = {name.removeprefix(begin).partition(".")[0] for name in names if name.startswith(begin)}
        # A head may stand beside what is wrapped.
        wrapper = next((first for first in firsts if _wraps(names, f"{begin}{first}.")), None)
        if wrapper is None:
            break
        begin += f"{wrapper}."
        yield _without(begin)
    yield lambda name: name if name.startswith("lm_head.") else f"model.{name}"


def _without(begin: str) -> Rename:
    return lambda name: name.removeprefix(begin)


def _wraps(names: list[str], begin: str) -> bool:
    """Whether all but a head stand below `begin`."""
    return sum(not name.startswith(begin) for name in names) <= 1


def as_mlx_lm_takes_it(model_type: str, name: str, tensor: Standin) -> tuple[str, Standin]:
    """The name and form in which `sanitize` of a model knows the tensor."""
    if model_type == "gemma3" and name.startswith("model.language_model."):
        # transformers' newer names.
        return name.replace("model.language_model.", "language_model.model.", 1), tensor
    if model_type == "gpt_oss" and name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
        # Unpacked, they are stored as (inputs, outputs).
        return f"{name}.weight", tensor.swapaxes(-1, -2)
    return name, tensor
