"""Whether a model folder is intact: its files against its manifest, its tensors against its config. Needs no MLX.

In a folder that was built here, whatever differs is a problem. One of others is checked for what would answer wrongly
or not load; what only other readers would stumble over is a warning, and what mlx-lm refuses it says itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantize.errors import QuantizeError, SourceError, VerifyError
from quantize.folder.config import is_affine, read_specs
from quantize.folder.hashing import sha256_of
from quantize.folder.manifest import MANIFEST, File, Manifest, read_manifest
from quantize.folder.model_files import holders, is_loaded_by_mlx, lost_shard, weight_files
from quantize.folder.safetensors_format import INDEX, Entry, Header, indexed_shards, parse_index, read_header
from quantize.folder.stale_template import stale_template
from quantize.folder.tensor_rules import tensor_problems
from quantize.foreign_json import read_json
from quantize.names import checked_name, checked_path, distinct_names

# A multiple of every element's size.
_BLOCK_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Findings:
    """One sentence each. With a problem, the folder is no model to be served."""

    problems: list[str]
    warnings: list[str]


def examine(folder: Path, *, thorough: bool) -> Findings:
    """`thorough` reads every byte; otherwise names, sizes, headers and quantization, in milliseconds."""
    found = Findings([], [])
    try:
        _examine(folder, found, thorough=thorough)
    except QuantizeError as error:
        return Findings([error.message], [])
    except OSError as error:
        return Findings([f"A file cannot be read: {error.strerror}."], [])
    return found


def verify(folder: Path) -> list[str]:
    """The problems of the folder, reading every byte."""
    return examine(folder, thorough=True).problems


def check(folder: Path) -> list[str]:
    """The same without reading the weights."""
    return examine(folder, thorough=False).problems


def verify_and_stamp(folder: Path, stamp: Path) -> list[str]:
    """`verify`, which leaves `stamp` where it found nothing wrong."""
    now = _stamp(folder)
    if not (problems := verify(folder)):
        # Without a stamp it is only verified again next time.
        with contextlib.suppress(OSError):
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(now, encoding="ascii")
    return problems


def is_unchanged(folder: Path, stamp: Path) -> bool:
    """Whether `stamp` is what `verify_and_stamp` left for these very files."""
    return stamp.is_file() and stamp.read_text(encoding="ascii") == _stamp(folder)


def _stamp(folder: Path) -> str:
    """Changes whenever a file is written to or replaced."""
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*"))]
    facts = [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats]
    return hashlib.sha256(json.dumps([str(folder), facts]).encode()).hexdigest()


def _examine(folder: Path, found: Findings, *, thorough: bool) -> None:
    if not folder.is_dir():
        found.problems.append(f"{folder} is not a folder.")
        return
    if stale := stale_template(folder):
        found.warnings.append(stale)
    config, manifest = _config(folder), read_manifest(folder)
    if manifest is None:
        headers = _of_others(folder, config, found)
    else:
        headers = _built_here(folder, config, manifest, found, thorough=thorough)
    if thorough:
        found.problems.extend(_not_finite(folder, headers))


def _built_here(
    folder: Path, config: Mapping[str, Any], manifest: Manifest, found: Findings, *, thorough: bool
) -> Mapping[str, Header]:
    """The headers, none where a shard is damaged."""
    distinct_names(manifest.files)
    shards = sorted(name for name in manifest.files if name.endswith(".safetensors"))
    files = _file_problems(folder, manifest, thorough=thorough)
    found.problems.extend([*files.values(), *_stray_shards(folder, shards)])
    if files.keys() & set(shards):
        return {}
    headers = {name: read_header(folder / checked_name(name)) for name in shards}
    found.problems.extend(_index_problems(_index(folder) or {}, headers))
    if is_affine(config):
        specs, default, problems = read_specs(config)
        found.problems.extend(problems or tensor_problems(_entries(headers), specs, default, manifest.tensors))
    return headers


def _of_others(folder: Path, config: Mapping[str, Any], found: Findings) -> Mapping[str, Header]:
    """mlx-lm reads every model*.safetensors there is, so that these are what counts, whatever an index says."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    loaded = sorted(filter(is_loaded_by_mlx, names)) or weight_files(names, None)
    headers = {name: read_header(folder / checked_name(name)) for name in loaded}
    try:
        index = _index(folder) or {}
    except SourceError as error:
        index = {}
        found.warnings.append(error.message)
    # Names that lead elsewhere are no slip.
    indexed_shards(index)
    if missing := lost_shard(headers, index):
        found.problems.append(f"{missing} is missing.")
    for tensor, (first, *others) in holders(headers, index).items():
        for other in others:
            if not _are_equal(folder, headers, tensor, first, other):
                found.problems.append(f"{tensor} is one thing in {first} and another in {other}: mlx-lm takes either.")
    found.warnings.extend(_index_problems(index, headers))
    if is_affine(config):
        specs, default, problems = read_specs(config)
        found.warnings.extend(problems or tensor_problems(_entries(headers), specs, default, None))
    return headers


def _entries(headers: Mapping[str, Header]) -> Mapping[str, Entry]:
    return {name: entry for header in headers.values() for name, entry in header.entries.items()}


def _index(folder: Path) -> Mapping[str, str] | None:
    return parse_index((folder / INDEX).read_bytes()) if (folder / INDEX).is_file() else None


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = read_json((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise VerifyError("The folder has no config.json.") from None
    except ValueError:
        raise VerifyError("config.json is not valid JSON.") from None
    if not isinstance(config, dict):
        raise VerifyError("config.json is not a JSON object.")
    return config


def _file_problems(folder: Path, manifest: Manifest, *, thorough: bool) -> Mapping[str, str]:
    """Problem by file name."""
    files = sorted(manifest.files.items())
    # hashlib releases the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda item: _file_problem(folder, *item, thorough=thorough), files)
        return {name: problem for (name, _), problem in zip(files, found, strict=True) if problem}


def _file_problem(folder: Path, name: str, file: File, *, thorough: bool) -> str | None:
    # A manifest may not lead out of its folder.
    path = folder / checked_path(name)
    if not path.is_file():
        return f"{name} is missing."
    if (size := path.stat().st_size) != file.size:
        return f"{name} has {size} bytes; {MANIFEST} says {file.size}."
    if thorough and sha256_of(path) != file.sha256:
        return f"{name} is damaged: its sha256 is not the one in {MANIFEST}."
    return None


def _stray_shards(folder: Path, shards: Sequence[str]) -> Iterator[str]:
    """mlx-lm loads every model*.safetensors it finds, regardless of the index."""
    for path in sorted(folder.glob("model*.safetensors")):
        if path.name not in shards:
            yield f"{path.name} does not belong to the model; mlx-lm would load it over the right weights."


def _index_problems(index: Mapping[str, str], headers: Mapping[str, Header]) -> Iterator[str]:
    """No more than one of a kind: they may be as many as there are tensors."""
    there = [(name, file) for file, header in headers.items() for name in header.entries]
    if len({name for name, _ in there}) != len(there):
        yield "A tensor is in two files."
    for name, file in sorted(index.items() ^ set(there))[:1] if index else ():
        yield f"{INDEX} and the files differ about {name} in {file}."


def _are_equal(folder: Path, headers: Mapping[str, Header], tensor: str, *files: str) -> bool:
    one, other = (headers[file].entries[tensor] for file in files)
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    blocks = [_blocks(folder / checked_name(file), headers[file], headers[file].entries[tensor]) for file in files]
    return all(a == b for a, b in zip(*blocks, strict=True))


def _not_finite(folder: Path, headers: Mapping[str, Header]) -> Iterator[str]:
    # numpy takes longer to import than everything else takes to check a model.
    from quantize.folder.finite import all_finite, is_float

    for file, header in headers.items():
        for entry in header.entries.values():
            if is_float(entry.dtype):
                blocks = _blocks(folder / checked_name(file), header, entry)
                if not all(all_finite(block, entry.dtype) for block in blocks):
                    yield f"{entry.name} holds values that are not finite."


def _blocks(file: Path, header: Header, entry: Entry) -> Iterator[bytes]:
    """The bytes of a tensor, a few megabytes at a time."""
    with file.open("rb") as opened:
        opened.seek(header.data + entry.begin)
        for start in range(0, entry.nbytes, _BLOCK_BYTES):
            yield opened.read(min(_BLOCK_BYTES, entry.nbytes - start))
