"""What each tensor of a checkpoint becomes in mlx-lm's model: its name there, its role, and which elements it has.

No family has a table of names: mlx-lm's own `sanitize` says where tensors go (`standins.py`), its module tree what they
are for (`roles.py`). A tensor that ends up nowhere, or without a role, is an error: it must never be quantized, kept or
dropped by accident. `plan/structure.py` checks every plan against the model class once more.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantize.errors import SourceError, first_line
from quantize.folder.finite import is_float
from quantize.source.checkpoint import SourceTensor
from quantize.source.left_alone import left_alone
from quantize.source.mlx_model import empty_model, quantizable_modules
from quantize.source.roles import TensorRole, layer_of, role_of
from quantize.source.spellings import Rename, as_mlx_lm_takes_it, prefixes
from quantize.source.views import View

# What a text model does not need and mlx-lm's `sanitize` does not always drop.
_UNUSED = re.compile(
    r"(?:model\.)?(?:vision_tower|multi_modal_projector|audio_tower|embed_audio|embed_vision|vision_embedder)\..*"
    # What is computed from config.json, which older tools stored: angles of RoPE, positions, masks.
    r"|(?:.*\.)?(?:inv_freq|cos_cached|sin_cached|position_ids|masked_bias|causal_mask|attn_mask)"
    r"|.*\.(?:self_)?att(?:n|ention)\.bias"
    r"|.*\.(?:input|output)_(?:max|min)"
    # Static scales of activations and of the KV cache, which only a kernel that computes in fp8 needs.
    r"|.*[._](?:input|output|activation|act)(?:_global)?_scale(?:_inv|_ub)?|.*\.(?:[qkv]|kv)_scale"
    r"|.*\.(?:input|output)_zero_point|.*\.weight_format"
    # Heads beside the language model's, of fine-tunes that judge or classify.
    r"|(?:model\.)?(?:score|classifier|qa_outputs|(?!lm_)[a-z0-9]+_head|[a-z]+_lm_head)s?\..*"
)
_MXFP4_GROUP = 32


class UnknownTensor(SourceError):
    """A tensor without a place in the model."""


@dataclass(frozen=True, slots=True)
class PlacedView:
    """Rows of a tensor of the model, in order: a view of one source tensor."""

    source: SourceTensor
    view: View


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor of the model; `pieces` one after the other are its rows. `left_alone`: mlx-lm needs it as it is."""

    name: str
    role: TensorRole
    layer: int | None
    shape: tuple[int, ...]
    pieces: Sequence[PlacedView]
    left_alone: bool = False


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the config with the language model's numbers."""
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def place(tensors: Mapping[str, SourceTensor], config: Mapping[str, Any]) -> list[Placed]:
    """The tensors of the model, in the order in which the source has them; what it does not need is in none.

    Raises:
        SourceError: naming the tensor that is missing, is unknown, or is changed in a way that cannot be followed.
    """
    try:
        return _placed(tensors, config, lambda name: name)
    except UnknownTensor as error:
        for rename in prefixes(tensors):
            # The names of the first attempt are the ones to tell of.
            with contextlib.suppress(SourceError):
                return _placed(tensors, config, rename)
        raise error


def _placed(tensors: Mapping[str, SourceTensor], config: Mapping[str, Any], rename: Rename) -> list[Placed]:
    model = empty_model(config)
    modules, quantizable, alone = dict(model.named_modules()), quantizable_modules(model), left_alone(config)
    order = {name: number for number, name in enumerate(tensors)}
    placed = []
    for name, value in _sanitized(model, tensors, config, rename).items():
        sources = getattr(value, "parts", [value])
        if _is_dropped(name, rename(sources[0].source), model, config) or (
            _is_empty_bias(sources[0].source, tensors) and not _owns(model, name)
        ):
            continue
        path = name.rpartition(".")[0]
        role = role_of(name, value.shape, type(modules.get(path)).__name__, quantizable=path in quantizable)
        if not _owns(model, name):
            model_type = config.get("model_type")
            raise UnknownTensor(
                f"The tensor {sources[0].source} has no known role in models of the type {model_type!r}."
            )
        pieces = [PlacedView(tensors[part.source], part.view_of_source) for part in sources]
        _check_dtypes(pieces, _parameter(model, name))
        placed.append(Placed(name, role, layer_of(name), value.shape, pieces, path in alone))
    return sorted(placed, key=lambda output: min(order[piece.source.name] for piece in output.pieces))


def _sanitized(
    model: Any, tensors: Mapping[str, SourceTensor], config: Mapping[str, Any], rename: Rename
) -> dict[str, Any]:
    from quantize.source.standins import sanitized

    model_type = str(config.get("model_type"))
    given = dict(as_mlx_lm_takes_it(model_type, rename(name), _standin(one)) for name, one in tensors.items())
    try:
        return sanitized(model, given)
    except KeyError as error:
        raise SourceError(f"The source lacks {error.args[0]}, which mlx-lm's {model_type} model needs.") from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        # MLX goes on with what it would have taken.
        reason = first_line(error).partition(". The following")[0]
        raise SourceError(
            f"mlx-lm changes tensors of its {model_type} model in an unsupported way: {reason}."
        ) from error


def _standin(tensor: SourceTensor) -> Any:
    import mlx.core as mx

    from quantize.source.standins import Standin
    from quantize.source.unpack import Mxfp4Blocks

    if isinstance(tensor.packing, Mxfp4Blocks):
        # mlx-lm packs eight codes into an integer, the groups of a row one after the other: here one stands for each.
        *rows, columns = tensor.shape
        return Standin.of(tensor.name, (*rows, columns // _MXFP4_GROUP, _MXFP4_GROUP), mx.uint32)
    dtypes = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}
    return Standin.of(tensor.name, tensor.shape, dtypes.get(tensor.dtype, mx.uint8))


def _owns(model: Any, name: str) -> bool:
    return _parameter(model, name) is not None


def _parameter(model: Any, name: str) -> Any:
    """What stands under that name in the model's tree, if anything does."""
    at: Any = model
    for key in name.split("."):
        try:
            at = at[int(key)] if isinstance(at, list | tuple) else at[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return at


def _check_dtypes(pieces: Sequence[PlacedView], parameter: Any) -> None:
    """Codes are no weights."""
    import mlx.core as mx

    wrong = next((piece.source for piece in pieces if not is_float(piece.source.dtype)), None)
    if wrong is not None and mx.issubdtype(parameter.dtype, mx.floating):
        raise SourceError(f"{wrong.name} is {wrong.dtype}, and nothing says how that is packed.")


def is_leftover(name: str) -> bool:
    """Whether a tensor of a source is one that no text model needs."""
    return _UNUSED.fullmatch(name) is not None


def is_unused(name: str, model: Any) -> bool:
    """Whether a tensor has no place in `model` and is known to need none."""
    return is_leftover(name) and not _owns(model, name)


def _is_empty_bias(source: str, tensors: Mapping[str, SourceTensor]) -> bool:
    """AutoGPTQ has stored zeros as the bias of every matrix, whether the model has one or not."""
    from quantize.source.unpack import GroupedIntegers

    matrix = tensors.get(f"{source.removesuffix('.bias')}.weight") if source.endswith(".bias") else None
    return matrix is not None and isinstance(matrix.packing, GroupedIntegers)


def _is_dropped(name: str, source: str, model: Any, config: Mapping[str, Any]) -> bool:
    if _owns(model, name):
        return False
    tied = config.get("tie_word_embeddings") or text_config(config).get("tie_word_embeddings")
    # Some checkpoints store the tied matrix twice.
    return is_unused(source, model) or (bool(tied) and source.endswith("lm_head.weight"))
