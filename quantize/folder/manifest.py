"""configi.json: what a model folder was built from and how, with size and sha256 of every other file.

Written last. It names neither time nor machine: the same build gives the same manifest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from quantize.errors import VerifyError
from quantize.files import replace

MANIFEST = "configi.json"
FORMAT = 1


class File(msgspec.Struct, frozen=True):
    sha256: str
    size: int


class Source(msgspec.Struct, frozen=True):
    """`identity` distinguishes states of the source; a local folder's includes modification times."""

    label: str
    repository: str | None
    revision: str | None
    identity: str


class TensorCalibration(msgspec.Struct, frozen=True):
    """Of one matrix, or of all experts of a stack, on text held back from the solver.

    chosen: candidate -> matrices that it was taken for. ratio: the error of the output over that of rounding, the mean
    of the matrices; worst: the largest. tokens: those of the calibration, at the matrix with the fewest; starved:
    matrices with fewer than five a dimension.
    """

    chosen: dict[str, int]
    ratio: float
    worst: float
    tokens: int
    starved: int


class TextSummary(msgspec.Struct, frozen=True):
    """`kinds`: tokens that were solved with, by kind; `held_back`: those that were only judged on.

    `identity` is what determines the result, given source and policy.
    """

    sha256: str
    kinds: dict[str, int]
    held_back: dict[str, int]
    identity: dict[str, Any]


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """`bits` and `group_size` if the tensor is quantized, else the dtype it is kept in."""

    role: str
    bits: int | None = None
    group_size: int | None = None
    dtype: str | None = None
    calibrated: TensorCalibration | None = None


class PolicyName(msgspec.Struct, frozen=True):
    name: str
    description: str


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """`plan` is equal for equal sources, policies and layouts; `made_with` has the versions of the tools."""

    format: int
    plan: str
    source: Source
    policy: PolicyName
    parameters: int
    bits_per_weight: float
    tensors: dict[str, Tensor]
    files: dict[str, File]
    made_with: dict[str, str]
    calibration: TextSummary | None = None


def write_manifest(folder: Path, manifest: Manifest) -> None:
    text = msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1)
    replace(folder / MANIFEST, text + b"\n")


def read_manifest(folder: Path) -> Manifest | None:
    """None when the folder has none. Raises VerifyError for a damaged one."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, OSError) as error:
        raise VerifyError(f"{MANIFEST} cannot be read: {error}.") from error
