"""Which files of a folder are the model: the one answer for building, serving, checking and fetching. Pure.

transformers reads what the index names, mlx-lm every model*.safetensors and no index. An index whose files are there
counts, so that a build ignores what else lies about; one that is left over from another form of the model does not.
Without one, a variant in another precision (model.fp16.safetensors) does not count beside the model in its plain name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from quantize.errors import SourceError
from quantize.folder.safetensors_format import Header, indexed_shards

# One of these is a model's tokenizer.
TOKENIZERS = frozenset(("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model"))
# Below it stand the chat templates beside the default one.
CHAT_TEMPLATES = "additional_chat_templates"
_CHAT_TEMPLATE = re.compile(rf"{CHAT_TEMPLATES}/[^/]+\.jinja")
_MODEL = re.compile(r"model.*\.safetensors")
_PLAIN = re.compile(r"model(?:-\d+-of-\d+)?\.safetensors")
# As transformers has named them, by dtypes: what else stands there (`model.mtp.safetensors`) may be more of the model.
_DTYPE, _SHARD = r"\.(?:bf|fp|f|int|bfloat|float)\d+", r"-\d+-of-\d+"
_VARIANT = re.compile(rf"model(?:{_DTYPE}(?:{_SHARD})?|{_SHARD}{_DTYPE})\.safetensors")
# Of another model, or the same one in its maker's own names.
_OTHERS = re.compile(r"(?:adapter|consolidated|optimizer|original).*")


def is_chat_template(name: str) -> bool:
    """Whether a path in a folder is that of a chat template beside the default one."""
    return _CHAT_TEMPLATE.fullmatch(name) is not None


def variants(names: Iterable[str]) -> set[str]:
    """Those of `names` that hold again, in another precision, what plainly named ones beside them hold."""
    names = set(names)
    return set(filter(_VARIANT.fullmatch, names)) if any(map(_PLAIN.fullmatch, names)) else set()


def is_loaded_by_mlx(name: str) -> bool:
    """Whether mlx-lm takes the file for weights of the model."""
    return _MODEL.fullmatch(name) is not None


def weight_files(names: Iterable[str], index: Mapping[str, str] | None) -> list[str]:
    """Of the files `names` of a folder, those with weights, in order; `index` is what its index says.

    Raises SourceError when there are none, or a name in the index can be the name of none.
    """
    present = {name for name in names if name.endswith(".safetensors")}
    indexed = indexed_shards(index) if index is not None else []
    if indexed and present.issuperset(indexed):
        return indexed
    found = sorted(filter(is_loaded_by_mlx, present - variants(present)))
    found = found or sorted(name for name in present if not _OTHERS.fullmatch(name))
    if not found:
        what = f"the shard {indexed[0]}" if indexed else "weights (model.safetensors)"
        raise SourceError(f"The source lacks {what}.")
    return found


def lost_shard(headers: Mapping[str, Header], index: Mapping[str, str] | None) -> str | None:
    """A file that is not there, by an index that has a tensor in it which no other file has; None if there is none.

    What the index has in a file that is there, and is not in it, may be needed by nobody: a head that is tied is often
    left in the index. Whether it is, the model tells.
    """
    there = {name for header in headers.values() for name in header.entries}
    return next((shard for name, shard in (index or {}).items() if shard not in headers and name not in there), None)


def holders(headers: Mapping[str, Header], index: Mapping[str, str] | None) -> dict[str, list[str]]:
    """The files that hold each tensor, the one that the index names first."""
    found: dict[str, list[str]] = {}
    for file, header in headers.items():
        for name in header.entries:
            found.setdefault(name, []).append(file)
    for name, shard in (index or {}).items():
        files = found.get(name, [])
        if shard in files:
            found[name] = [shard, *(file for file in files if file != shard)]
    return found
