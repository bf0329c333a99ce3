"""From the headers of a checkpoint and a policy to everything a build will write, before any weight is read.

A build decides nothing: each output tensor with its quantization, each file with the offset of every byte, and which
rows of which source tensor go where are in the plan. So the order of work cannot change the result, and an interrupted
build resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from quantize.errors import PolicyError, SourceError
from quantize.folder.finite import is_float
from quantize.folder.quant_spec import QuantSpec, fitting_spec
from quantize.folder.safetensors_format import Header, lay_out
from quantize.plan import structure
from quantize.plan.output_tensor import OutputTensor
from quantize.plan.policy import KEEP, Policy, find_policy
from quantize.source.checkpoint import Checkpoint, SourceTensor
from quantize.source.declared import undeclared
from quantize.source.families import Placed, place
from quantize.source.mlx_model import layer_count
from quantize.source.ties import explicit_about_ties
from quantize.source.views import View

# As mlx_lm.convert's; a file of this size can be on disk twice while it is copied.
SHARD_BYTES = 5_000_000_000
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class SourceSlice:
    """A view of a source tensor becomes rows of `output`, its leading axes folded into them, from `first_row` on."""

    output: OutputTensor
    view: View
    first_row: int


@dataclass(frozen=True, slots=True)
class OutputFile:
    """`start` is everything before the tensors: header length and header."""

    name: str
    start: bytes
    header: Header


@dataclass(frozen=True)
class Plan:
    """`work` holds the slices of each source tensor that is used, in the order of the source.

    `calibration` is the identity of the one whose result is stored in place of rounded weights.
    """

    label: str
    repository: str | None
    revision: str | None
    source_identity: str
    config: Mapping[str, Any]
    policy: Policy
    tensors: Sequence[OutputTensor]
    work: Sequence[tuple[SourceTensor, Sequence[SourceSlice]]]
    dropped: Sequence[str]
    kept_modules: Sequence[str]
    files: Sequence[OutputFile]
    calibration: Mapping[str, Any] | None = None

    @cached_property
    def parameters(self) -> int:
        return sum(output.parameters for output in self.tensors)

    @cached_property
    def tensor_bytes(self) -> int:
        return sum(output.nbytes for output in self.tensors)

    @property
    def output_bytes(self) -> int:
        """The size of the files that hold the tensors."""
        return sum(file.header.size for file in self.files)

    @property
    def bits_per_weight(self) -> float:
        """Over all parameters of the text model, scales and biases included."""
        return self.tensor_bytes * 8 / self.parameters

    @property
    def work_bytes(self) -> int:
        """Source bytes that are read."""
        return sum(tensor.nbytes for tensor, _ in self.work)

    @cached_property
    def fingerprint(self) -> str:
        """Equal for the same source and the same outcome; a build resumes only from its own staging folder."""
        layout = [[output.name, output.role, asdict(output.spec) if output.spec else None] for output in self.tensors]
        files = [[file.name, file.header.size] for file in self.files]
        facts: list[Any] = [_FORMAT, self.revision or self.source_identity, self.policy.name, layout, files]
        if self.calibration is not None:
            facts.append(self.calibration)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def make_plan(
    checkpoint: Checkpoint,
    policy_name: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    calibration: Mapping[str, Any] | None = None,
    widths: Mapping[str, QuantSpec] | None = None,
) -> Plan:
    """`widths`: of single tensors, by name, in place of the policy's.

    Raises SourceError for a tensor that is missing or has no role, PolicyError for a policy that does not fit.
    """
    config = undeclared(explicit_about_ties(checkpoint.config, checkpoint.tensors))
    layers = layer_count(config)
    placed = place(checkpoint.tensors, config)
    policy = find_policy(policy_name, experts=any(tensor.role.startswith("expert") for tensor in placed))
    outputs = [_output(tensor, policy, layers) for tensor in placed]
    if widths:
        outputs = [replace(output, spec=widths.get(output.name, output.spec)) for output in outputs]
        policy = replace(policy, name=f"{policy.name}-allocated", description="widths by measured loss")
    kept = structure.check(config, outputs)
    slices = _slices(placed, outputs)
    return Plan(
        label=checkpoint.label,
        repository=checkpoint.repository,
        revision=checkpoint.revision,
        source_identity=checkpoint.identity,
        config=config,
        policy=policy,
        tensors=outputs,
        work=[(tensor, slices[name]) for name, tensor in checkpoint.tensors.items() if name in slices],
        dropped=[name for name in checkpoint.tensors if name not in slices],
        kept_modules=kept,
        files=_files(outputs, shard_bytes),
        calibration=calibration,
    )


def _output(placed: Placed, policy: Policy, layers: int) -> OutputTensor:
    dtype = _dtype(placed)
    columns = placed.shape[-1] if placed.shape else 1
    chosen = policy.spec(placed.role, placed.layer, layers) if len(placed.shape) > 1 else KEEP
    spec = fitting_spec(chosen, columns) if chosen and not placed.left_alone else KEEP
    if chosen and not spec and not placed.left_alone and placed.role.startswith("expert"):
        raise PolicyError(f"The experts in {placed.name} have {columns} columns, which no group size divides.")
    forced = chosen if chosen != spec else None
    return OutputTensor(placed.name, placed.role, placed.layer, placed.shape, dtype, spec, forced, placed.left_alone)


def _dtype(placed: Placed) -> str:
    """That of its pieces; of different ones, that which holds them all, as MLX stacks them."""
    dtypes = {piece.source.dtype for piece in placed.pieces}
    if len(dtypes) > 1 and not all(map(is_float, dtypes)):
        names = " and ".join(sorted(dtypes))
        raise SourceError(f"The parts of {placed.name} are {names}: they would be one tensor.")
    return dtypes.pop() if len(dtypes) == 1 else "F32"


def _slices(placed: Iterable[Placed], outputs: Iterable[OutputTensor]) -> Mapping[str, Sequence[SourceSlice]]:
    """By the name of the source tensor."""
    found: dict[str, list[SourceSlice]] = {}
    for tensor, output in zip(placed, outputs, strict=True):
        row = 0
        for piece in tensor.pieces:
            found.setdefault(piece.source.name, []).append(SourceSlice(output, piece.view, row))
            row += piece.view.matrix[0]
    return found


def _files(outputs: Iterable[OutputTensor], shard_bytes: int) -> list[OutputFile]:
    """Filled in the order of the source, so that each is complete as early as possible."""
    shards: list[list[OutputTensor]] = [[]]
    filled = 0
    for output in outputs:
        if shards[-1] and filled + output.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(output)
        filled += output.nbytes
    files = []
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        arrays = [(array, dtype, shape) for output in shard for array, (dtype, shape) in output.arrays.items()]
        # Four-byte elements first: then every tensor is aligned to its element size, as readers that map files prefer.
        arrays.sort(key=lambda array: array[1] not in ("U32", "F32"))
        files.append(OutputFile(name, *lay_out(arrays)))
    return files
