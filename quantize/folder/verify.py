"""Whether a model folder is intact: its files against its manifest, its tensors against its config. Needs no MLX.

A folder without configi.json is checked for consistency: index, headers, quantization table. Modes other than affine
are left to mlx-lm.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from quantize.errors import QuantizeError, VerifyError
from quantize.folder.config import is_affine, read_specs
from quantize.folder.hashing import sha256_of
from quantize.folder.manifest import MANIFEST, File, Manifest, read_manifest
from quantize.folder.safetensors_format import INDEX, Entry, Header, indexed_shards, parse_index, read_header
from quantize.folder.tensor_rules import tensor_problems
from quantize.foreign_json import read_json
from quantize.names import checked_name, distinct_names


def verify(folder: Path) -> list[str]:
    """The problems of the folder, one sentence each; reads every byte."""
    return _problems(folder, thorough=True)


def check(folder: Path) -> list[str]:
    """The same without reading the weights: names, sizes, headers, quantization. Milliseconds."""
    return _problems(folder, thorough=False)


def verify_if_changed(folder: Path, stamp: Path) -> list[str]:
    """`check`, and `verify` if a file changed since the last call that found nothing wrong and left `stamp`."""
    if (problems := check(folder)) or is_unchanged(folder, stamp):
        return problems
    now = _stamp(folder)
    if not (problems := verify(folder)):
        # Without a stamp it is only verified again next time.
        with contextlib.suppress(OSError):
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.write_text(now, encoding="ascii")
    return problems


def is_unchanged(folder: Path, stamp: Path) -> bool:
    """Whether `stamp` is what `verify_if_changed` left for these very files."""
    return stamp.is_file() and stamp.read_text(encoding="ascii") == _stamp(folder)


def _stamp(folder: Path) -> str:
    """Changes whenever a file is written to or replaced."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    facts = [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats]
    return hashlib.sha256(json.dumps([str(folder), facts]).encode()).hexdigest()


def _problems(folder: Path, *, thorough: bool) -> list[str]:
    try:
        if not folder.is_dir():
            return [f"{folder} is not a folder."]
        config, manifest = _config(folder), read_manifest(folder)
        shards = _shards(folder, manifest)
        files = _file_problems(folder, shards, manifest, thorough=thorough)
        found = [*files.values(), *_stray_shards(folder, shards)]
        if files.keys() & set(shards):
            return found
        headers = {name: read_header(folder / checked_name(name)) for name in shards}
        found += _index_problems(folder, headers)
        entries = {name: entry for header in headers.values() for name, entry in header.entries.items()}
        if not is_affine(config):
            return found
        specs, default, read_problems = read_specs(config)
        found += read_problems or tensor_problems(entries, specs, default, manifest.tensors if manifest else None)
        if thorough:
            found += _not_finite(folder, headers)
    except QuantizeError as error:
        return [error.message]
    except OSError as error:
        return [f"A file cannot be read: {error.strerror}."]
    return found


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


def _shards(folder: Path, manifest: Manifest | None) -> list[str]:
    """Those named by the manifest, else by the index, else those present."""
    if manifest is not None:
        distinct_names(manifest.files)
        return sorted(name for name in manifest.files if name.endswith(".safetensors"))
    if (folder / INDEX).is_file():
        return indexed_shards(parse_index((folder / INDEX).read_bytes()))
    if found := sorted(path.name for path in folder.glob("model*.safetensors")):
        return found
    raise VerifyError("The folder has no model*.safetensors.")


def _file_problems(
    folder: Path, shards: Sequence[str], manifest: Manifest | None, *, thorough: bool
) -> Mapping[str, str]:
    """Problem by file name."""
    if manifest is None:
        return {name: f"{name} is missing." for name in shards if not (folder / checked_name(name)).is_file()}
    files = sorted(manifest.files.items())
    # hashlib releases the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda item: _file_problem(folder, *item, thorough=thorough), files)
        return {name: problem for (name, _), problem in zip(files, found, strict=True) if problem}


def _file_problem(folder: Path, name: str, file: File, *, thorough: bool) -> str | None:
    # A manifest may not lead out of its folder.
    path = folder / checked_name(name)
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


def _index_problems(folder: Path, headers: Mapping[str, Header]) -> Iterator[str]:
    index = parse_index((folder / INDEX).read_bytes()) if (folder / INDEX).is_file() else {}
    there = [(name, file) for file, header in headers.items() for name in header.entries]
    if len({name for name, _ in there}) != len(there):
        yield "A tensor is in two files."
    for name, file in sorted(index.items() ^ set(there)) if index else ():
        yield f"{INDEX} and the files differ about {name} in {file}."


def _not_finite(folder: Path, headers: Mapping[str, Header]) -> Iterator[str]:
    for file, header in headers.items():
        for entry in header.entries.values():
            if entry.name.endswith((".scales", ".biases")) and not _is_finite(
                folder / checked_name(file), header, entry
            ):
                yield f"{entry.name} holds values that are not finite."


def _is_finite(file: Path, header: Header, entry: Entry) -> bool:
    # numpy takes longer to import than everything else takes to check a model.
    from quantize.folder.finite import all_finite

    with file.open("rb") as opened:
        opened.seek(header.data + entry.begin)
        return all_finite(opened.read(entry.nbytes), entry.dtype)
