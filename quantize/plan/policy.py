"""Policies as data: which role of a model, in which layer, gets how many bits.

A role is what a tensor is for (see `roles.py`). A policy that does not name a role which the model has is an error,
never a default. The numbers: `config-i` for mixtures of experts is the published model card's table, for dense models
the card's for Qwen3.6-27B; `config-i-paper`, `hybrid` and `premium` give the bits per weight of the paper's GGUF types
in MLX's affine format (5.0 = 4 bits in groups of 32, 4.5 = 4 in 64, 5.5 = 5 in 64, 6.5 = 6 in 64).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from quantize.errors import PolicyError
from quantize.folder.quant_spec import BITS, QuantSpec
from quantize.source.roles import QUANTIZABLE, TensorRole

# Kept in the source's dtype.
KEEP = None


@dataclass(frozen=True, slots=True)
class Policy:
    """`middle` applies to every layer and to what is in none; `boundary` to the first and last layers."""

    name: str
    description: str
    middle: Mapping[TensorRole, QuantSpec | None]
    boundary: Mapping[TensorRole, QuantSpec | None]
    first: int = 2
    last: int = 2

    def spec(self, role: TensorRole, layer: int | None, layers: int) -> QuantSpec | None:
        """How to quantize a role in `layer` of `layers`, or None to keep the source's dtype. Raises PolicyError."""
        if role == "other":
            return KEEP
        at_boundary = layer is not None and (layer < self.first or layer >= layers - self.last)
        row = self.boundary if at_boundary and role in self.boundary else self.middle
        if role not in row:
            raise PolicyError(f"The policy {self.name} does not name the role {role}, which this model has.")
        return row[role]


_EIGHT_BITS = QuantSpec(8)


def _policy(
    name: str,
    description: str,
    *,
    attention: QuantSpec | None,
    mlp: tuple[QuantSpec | None, QuantSpec | None],
    embedding: QuantSpec | None,
    experts: tuple[QuantSpec, QuantSpec] | None = None,
    small: QuantSpec | None = _EIGHT_BITS,
    boundary: Mapping[TensorRole, QuantSpec] | QuantSpec | None = None,
    layers: int = 2,
) -> Policy:
    """`mlp` and `experts` are (gate and up, down); `small` is for what only Gemma's small models have.

    A single `boundary` spec applies to every matrix of a layer but the router.
    """
    middle: dict[TensorRole, QuantSpec | None] = {
        "embedding": embedding,
        "lm_head": embedding,
        "attention": attention,
        "mlp_gate_up": mlp[0],
        "mlp_down": mlp[1],
        "per_layer_input": small,
        "residual": small,
        "router": KEEP,
    }
    if experts is not None:
        middle |= {"expert_gate_up": experts[0], "expert_down": experts[1]}
    if isinstance(boundary, QuantSpec):
        boundary = {role: boundary for role in middle if role not in ("embedding", "lm_head", "router")}
    return Policy(name, description, middle, boundary or {}, layers, layers)


_W2, _W3, _W4, _W5, _W6, _W8 = (QuantSpec(bits) for bits in BITS)

# The card gives no row for Gemma 4's dense mlp beside the experts; its published size holds only if it follows theirs.
_CONFIG_I = _policy(
    "config-i",
    "experts 2-bit (down 3), attention 4, the first and last 2 layers and embeddings 8, router kept",
    experts=(_W2, _W3),
    mlp=(_W2, _W3),
    attention=_W4,
    embedding=_W8,
    boundary=_W8,
)
_CONFIG_I_DENSE = _policy(
    "config-i",
    "4-bit, the first and last 2 layers 8, embeddings kept",
    mlp=(_W4, _W4),
    attention=_W4,
    embedding=KEEP,
    boundary=_W8,
)
_ALONE = [
    _policy(
        "config-i-no2bit",
        "smaller than config-i, no weight at 2 bits: experts 3, attention 6 (boundary 8), dense mlp and embeddings 8",
        experts=(QuantSpec(3, 128), _W3),
        mlp=(_W8, _W8),
        attention=_W6,
        embedding=_W8,
        boundary={"expert_gate_up": _W3, "expert_down": _W3, "attention": _W8},
    ),
    _policy(
        "config-i-16gb",
        "for 16 GB Macs: experts 2-bit (down 3, boundary 4), attention 5 (boundary 8), dense mlp 8, embeddings 6",
        experts=(QuantSpec(2, 128), _W3),
        mlp=(_W8, _W8),
        attention=_W5,
        embedding=_W6,
        boundary={"expert_gate_up": _W4, "expert_down": _W4, "attention": _W8},
    ),
    _policy(
        "config-i-paper",
        "the paper's Config I for dense models: attention, gate and up 5.0 bits per weight, down 4.5, boundary 8",
        mlp=(QuantSpec(4, 32), _W4),
        attention=QuantSpec(4, 32),
        embedding=_W8,
        boundary=_W8,
    ),
    _policy(
        "hybrid",
        "the paper's variant for the Llama family: attention 5.0 bits per weight, mlp 4.5, boundary 8",
        mlp=(_W4, _W4),
        attention=QuantSpec(4, 32),
        embedding=_W8,
        boundary=_W8,
    ),
    _policy(
        "premium",
        "the paper's larger variant: attention 5.0 bits per weight, gate and up 5.5, down 6.5, boundary 4+4 layers 8",
        mlp=(_W5, _W6),
        attention=QuantSpec(4, 32),
        embedding=_W8,
        boundary=_W8,
        layers=4,
    ),
    *(
        _policy(
            f"uniform-{spec.bits}",
            f"{spec.bits}-bit everywhere, router kept",
            experts=(spec, spec),
            mlp=(spec, spec),
            attention=spec,
            embedding=spec,
            small=spec,
        )
        for spec in (_W2, _W3, _W4, _W5, _W6, _W8)
    ),
    Policy("source", "no quantization: the source's dtypes", dict.fromkeys(QUANTIZABLE, KEEP), {}),
]
# By name, for mixtures of experts and for dense models.
MOE = {policy.name: policy for policy in (_CONFIG_I, *_ALONE)}
DENSE = MOE | {"config-i": _CONFIG_I_DENSE}


def find_policy(name: str, *, experts: bool) -> Policy:
    """A built-in policy by name, or the one in a TOML file. Raises PolicyError."""
    if name.endswith(".toml"):
        return read_policy(Path(name).expanduser())
    known = MOE if experts else DENSE
    if name not in known:
        raise PolicyError(f"There is no policy {name}; use {', '.join(known)}, or a .toml file.")
    return known[name]


# ---- a user's own policy in TOML


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Spec(_Strict):
    bits: Literal[2, 3, 4, 5, 6, 8]
    group_size: Literal[32, 64, 128] = 64


_Specs = dict[Literal[QUANTIZABLE], _Spec | Literal["keep"]]  # type: ignore[valid-type]


class _Boundary(_Strict):
    first: int = Field(2, ge=0)
    last: int = Field(2, ge=0)
    roles: _Specs = {}


class _File(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    roles: _Specs
    boundary: _Boundary = _Boundary(first=0, last=0)


def read_policy(file: Path) -> Policy:
    """The policy in a TOML file; docs/building.md shows one. Raises PolicyError."""
    try:
        read = _File.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise PolicyError(f"The policy {file} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyError(f"The policy {file} is not valid TOML: {error}.") from None
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in wrong["loc"])
        raise PolicyError(f"The policy {file}: {where}: {wrong['msg']}.") from None
    return Policy(
        read.name,
        read.description,
        _specs(read.roles),
        _specs(read.boundary.roles),
        read.boundary.first,
        read.boundary.last,
    )


def _specs(read: Mapping[TensorRole, _Spec | Literal["keep"]]) -> dict[TensorRole, QuantSpec | None]:
    return {role: KEEP if w == "keep" else QuantSpec(w.bits, w.group_size) for role, w in read.items()}
