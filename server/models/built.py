"""Models that this server built itself: where they are kept, and the command that builds one. HTTP process."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from quantize.hub.cache import cached_folder
from quantize.names import checked_name
from server.settings.types import ModelSettings, StorageSettings


def built_folder(model: ModelSettings, cache_dir: Path) -> Path | None:
    """The finished model if there is one; it appears by one rename, so what is there is complete."""
    if model.build_from is None:
        return None
    folder = _place(model.build_from, model.policy, cache_dir)
    return folder if folder.is_dir() else None


def source_is_here(source: str) -> bool:
    """Whether a build from `source` needs no Hub."""
    if Path(source).expanduser().exists():
        return True
    repo, _, revision = source.partition("@")
    return cached_folder(repo, revision or None) is not None


def build_arguments(source: str, policy: str, storage: StorageSettings) -> list[str]:
    """For `python`. The source is not kept, since it is several times the size of the model."""
    folder = _place(source, policy, storage.cache_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["-m", "quantize", "build", source, str(folder), "--policy", policy, "--discard-source"]
    arguments += ["--hub-timeout", str(storage.hub_timeout_s), "--json-progress"]
    return arguments if storage.allow_download else [*arguments, "--offline"]


def _place(source: str, policy: str, cache_dir: Path) -> Path:
    """A readable name, different for every source and policy."""
    written = Path(policy).expanduser()
    content = written.read_bytes() if written.is_file() else b""
    key = hashlib.sha256(b"\0".join([source.encode(), policy.encode(), content])).hexdigest()
    name = re.sub(r"[^\w.@-]+", "-", f"{Path(source).name}-{written.stem}")
    return cache_dir / "models" / checked_name(f"{name}-{key[:8]}")
