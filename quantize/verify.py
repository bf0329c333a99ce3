"""Whether a model folder is whole: its files against its manifest, its tensors against its config. Needs no MLX.

A folder without configi.json is checked for what it says of itself: index, headers, widths. Modes other than affine are
left to mlx-lm.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from quantize.config_json import is_affine, read_widths
from quantize.errors import QuantizeError, VerifyError
from quantize.finite import all_finite
from quantize.manifest import MANIFEST, Manifest, read_manifest
from quantize.safetensors_format import INDEX, Entry, Header, parse_index, read_header
from quantize.tensor_rules import tensor_problems


def verify(folder: Path) -> list[str]:
    """What is wrong with the folder, each as a sentence; reads every byte."""
    return _problems(folder, thorough=True)


def check(folder: Path) -> list[str]:
    """The same without reading the weights: names, sizes, headers, widths. Milliseconds."""
    return _problems(folder, thorough=False)


def verify_if_changed(folder: Path, stamp: Path) -> list[str]:
    """`check`, and `verify` if a file changed since the last call that found nothing wrong and left `stamp`."""
    if problems := check(folder):
        return problems
    now = _stamp(folder)
    if stamp.is_file() and stamp.read_text(encoding="ascii") == now:
        return []
    if not (problems := verify(folder)):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(now, encoding="ascii")
    return problems


def _stamp(folder: Path) -> str:
    """Changes whenever a file was written to or exchanged."""
    stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    facts = [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats]
    return hashlib.sha256(json.dumps([str(folder), facts]).encode()).hexdigest()


def _problems(folder: Path, *, thorough: bool) -> list[str]:
    try:
        if not folder.is_dir():
            return [f"{folder} is no folder."]
        config, manifest = _config(folder), read_manifest(folder)
        found = [*_file_problems(folder, manifest, thorough=thorough), *_stray_shards(folder, manifest)]
        if any(not (folder / name).is_file() for name in _shards(folder, manifest)):
            return found
        headers = {name: read_header(folder / name) for name in _shards(folder, manifest)}
        found += _index_problems(folder, headers)
        entries = {name: entry for header in headers.values() for name, entry in header.entries.items()}
        if not is_affine(config):
            return found
        widths, default, wrong = read_widths(config)
        found += wrong or tensor_problems(entries, widths, default, manifest.tensors if manifest else None)
        if thorough:
            found += _not_finite(folder, headers)
    except QuantizeError as error:
        return [error.message]
    except OSError as error:
        return [f"A file cannot be read: {error.strerror}."]
    return found


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except FileNotFoundError:
        raise VerifyError("The folder has no config.json.") from None
    except ValueError:
        raise VerifyError("config.json is not valid JSON.") from None
    if not isinstance(config, dict):
        raise VerifyError("config.json is no JSON object.")
    return config


def _shards(folder: Path, manifest: Manifest | None) -> list[str]:
    """Those that the manifest names, or the index, or that are there."""
    if manifest is not None:
        return sorted(name for name in manifest.files if name.endswith(".safetensors"))
    if (folder / INDEX).is_file():
        return sorted(set(parse_index((folder / INDEX).read_bytes()).values()))
    if found := sorted(path.name for path in folder.glob("model*.safetensors")):
        return found
    raise VerifyError("The folder has no model*.safetensors.")


def _file_problems(folder: Path, manifest: Manifest | None, *, thorough: bool) -> Iterator[str]:
    if manifest is None:
        yield from (f"{name} is missing." for name in _shards(folder, None) if not (folder / name).is_file())
        return
    for name, file in sorted(manifest.files.items()):
        path = folder / name
        # A manifest may not lead out of its folder.
        if Path(name).name != name or not path.is_file():
            yield f"{name} is missing."
        elif path.stat().st_size != file.size:
            yield f"{name} has {path.stat().st_size} bytes; {MANIFEST} says {file.size}."
        elif thorough and _sha256(path) != file.sha256:
            yield f"{name} is damaged: its sha256 is not the one in {MANIFEST}."


def _stray_shards(folder: Path, manifest: Manifest | None) -> Iterator[str]:
    """mlx-lm loads every model*.safetensors that it finds, whatever the index says."""
    known = set(_shards(folder, manifest))
    for path in sorted(folder.glob("model*.safetensors")):
        if path.name not in known:
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
            if entry.name.endswith((".scales", ".biases")) and not _is_finite(folder / file, header, entry):
                yield f"{entry.name} holds values that are not finite."


def _is_finite(file: Path, header: Header, entry: Entry) -> bool:
    with file.open("rb") as opened:
        opened.seek(header.data + entry.begin)
        return all_finite(opened.read(entry.nbytes), entry.dtype)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
