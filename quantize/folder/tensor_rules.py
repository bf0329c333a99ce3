"""What the tensors of a model must be, given its quantization table and, if there is one, its manifest. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from quantize.folder.manifest import Tensor
from quantize.folder.quant_spec import QuantSpec, stored_shapes
from quantize.folder.safetensors_format import Entry

_SUFFIXES = (".weight", ".scales", ".biases")


def tensor_problems(
    entries: Mapping[str, Entry],
    specs: Mapping[str, QuantSpec | None],
    default: QuantSpec | None,
    tensors: Mapping[str, Tensor] | None,
) -> Iterator[str]:
    """`specs` and `default` are those of `config.read_specs`; `default` None: the model is not quantized."""
    quantized = {name.removesuffix(".scales") for name in entries if name.endswith(".scales")}
    if quantized and default is None:
        yield "The tensors are quantized, but config.json has no quantization table."
        return
    for path in sorted(quantized):
        spec = specs.get(path, default)
        if path not in specs and tensors is not None:
            # Readers other than mlx-lm 0.32.2 and later know the bits only from there.
            yield f"config.json has no entry for {path}."
        if spec is None:
            yield f"{path} is quantized, but config.json says it is not."
        else:
            yield from _module_problems(path, spec, entries)
    for path, spec in specs.items():
        if f"{path}.weight" not in entries and (spec is not None or tensors is not None):
            yield f"config.json names {path}, which the model does not have."
        elif spec is not None and path not in quantized:
            yield f"config.json says that {path} is {spec}, but it is not quantized."
    yield from _experts(entries, specs, quantized, default) if tensors is None else _manifest(entries, tensors)


def _module_problems(path: str, spec: QuantSpec, entries: Mapping[str, Entry]) -> Iterator[str]:
    weight, scales, biases = (entries.get(path + suffix) for suffix in _SUFFIXES)
    if weight is None or scales is None or biases is None:
        yield f"{path} lacks its weight or its biases."
        return
    columns = scales.shape[-1] * spec.group_size
    expected = {suffix: shape for suffix, (_, shape) in stored_shapes((*weight.shape[:-1], columns), spec).items()}
    for entry, suffix in ((weight, "weight"), (scales, "scales"), (biases, "biases")):
        if entry.shape != expected[suffix]:
            yield f"{entry.name} has the shape {list(entry.shape)}; {spec} needs {list(expected[suffix])}."
    if weight.dtype != "U32":
        yield f"{weight.name} is {weight.dtype}; packed weights are U32."
    if scales.dtype != biases.dtype:
        yield f"{path} has scales in {scales.dtype} and biases in {biases.dtype}."


def _experts(
    entries: Mapping[str, Entry], specs: Mapping[str, QuantSpec | None], quantized: set[str], default: QuantSpec | None
) -> Iterator[str]:
    """Stacked matrices are experts, nine tenths of a model; converters that look for nn.Linear miss them."""
    for name, entry in entries.items():
        path = name.removesuffix(".weight")
        stacked = len(entry.shape) == 3 and entry.shape[-1] > 1 and not name.endswith(_SUFFIXES[1:])
        if stacked and path not in quantized and specs.get(path, default) is not None:
            yield f"The experts in {name} are not quantized."


def _manifest(entries: Mapping[str, Entry], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    expected: set[str] = set()
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        stored = {name} if tensor.bits is None else {path + suffix for suffix in _SUFFIXES}
        expected |= stored
        if missing := sorted(stored - entries.keys()):
            yield f"{missing[0]} is missing."
        elif tensor.bits is not None and tensor.group_size is not None:
            yield from _module_problems(path, QuantSpec(tensor.bits, tensor.group_size), entries)
        elif entries[name].dtype != tensor.dtype:
            yield f"{name} is {entries[name].dtype}; the manifest says {tensor.dtype}."
    yield from (f"{name} is not in the manifest." for name in sorted(entries.keys() - expected))
