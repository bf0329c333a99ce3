"""Models that this server built itself: where they are kept, and the command that builds one. HTTP process."""

from __future__ import annotations

import contextlib
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
    folder = _place(model.build_from, model, cache_dir)
    return folder if folder.is_dir() else None


def source_is_here(source: str) -> bool:
    """Whether a build from `source` needs no Hub."""
    if Path(source).expanduser().exists():
        return True
    repo, _, revision = source.partition("@")
    return cached_folder(repo, revision or None) is not None


def build_arguments(source: str, model: ModelSettings, storage: StorageSettings) -> list[str]:
    """For `python`. The source, several times the size of the model, is not kept but for a calibration."""
    folder = _place(source, model, storage.cache_dir)
    arguments = ["-m", "quantize", "build", source, str(folder), "--policy", model.policy, "--discard-source"]
    arguments += ["--hub-timeout", str(storage.hub_timeout_s), "--json-progress"]
    if model.build_memory_limit is not None:
        arguments += ["--memory-limit", str(int(model.build_memory_limit))]
    if model.calibrates:
        arguments += ["--calibrate"]
    return arguments if storage.allow_download else [*arguments, "--offline"]


def without_paths(text: str, model: ModelSettings, cache_dir: Path) -> str:
    """What a build says, for those who only ask the server: which folders this machine has is nobody's business."""
    names = {str(cache_dir / "models"): "storage.cache_dir/models"}
    for given in filter(_is_path, (model.build_from or "", model.policy)):
        written = Path(given)
        names |= dict.fromkeys((given, str(written), str(written.expanduser())), written.name)
    for path in sorted(names, key=len, reverse=True):
        text = text.replace(path, names[path])
    return text


def _is_path(given: str) -> bool:
    """Rather than the name of a repository or of a policy."""
    return bool(Path(given).name) and (given.startswith(("/", "~", ".")) or Path(given).exists())


def _place(source: str, model: ModelSettings, cache_dir: Path) -> Path:
    """A readable name, different for every source and policy, and for a calibrated model."""
    written = Path(model.policy).expanduser()
    content = b""
    # The builder says what is wrong with it.
    with contextlib.suppress(OSError):
        content = written.read_bytes()
    calibrated = [b"calibrated"] if model.calibrates else []
    key = hashlib.sha256(b"\0".join([source.encode(), model.policy.encode(), content, *calibrated])).hexdigest()
    name = re.sub(r"[^\w.@-]+", "-", f"{Path(source).name}-{written.stem}{'-calibrated' if calibrated else ''}")
    return cache_dir / "models" / checked_name(f"{name}-{key[:8]}")
