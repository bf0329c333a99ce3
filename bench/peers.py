"""The other servers that configi is measured against, and llama-benchy: `python -m bench.peers` installs them, each in
an environment of its own, below the folder of the benchmarks' models or where `CONFIGI_BENCH_PEERS` says.

They pin versions of mlx-lm that configi has left behind, so they cannot share its environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from bench.models import cache_folder

# The name by which every measured server knows its only model: mlx_lm.server's own for the one of its command line.
MODEL = "default_model"


@dataclass(frozen=True, slots=True)
class Peer:
    """`package` is also its command; `options` follow `serve FOLDER --port P`; `beside` is part of its version."""

    package: str
    options: tuple[str, ...] = ()
    beside: tuple[str, ...] = ("mlx", "mlx-lm")

    @property
    def folder(self) -> Path:
        return Path(os.environ.get("CONFIGI_BENCH_PEERS") or cache_folder() / "peers") / self.package

    @property
    def program(self) -> Path:
        return self.folder / "bin" / self.package

    @property
    def installed(self) -> bool:
        return self.program.is_file()

    def command(self, model: Path, port: int) -> list[str]:
        serve = [str(self.program), "serve", str(model), "--port", str(port), "--served-model-name", MODEL]
        return [*serve, *self.options]

    def version(self) -> str:
        names = f"from importlib.metadata import version as v; print(*map(v, {(self.package, *self.beside)!r}))"
        asked = subprocess.run(
            [self.folder / "bin" / "python", "-c", names], capture_output=True, text=True, check=True
        )
        own, *others = asked.stdout.split()
        beside = ", ".join(f"{name} {version}" for name, version in zip(self.beside, others, strict=True))
        return f"{own} ({beside})" if beside else own

    def install(self) -> None:
        venv.create(self.folder, with_pip=True)
        pip: list[str | Path] = [self.folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--upgrade"]
        mlx = ["mlx[cpu]" if sys.platform == "linux" else "mlx"] if "mlx" in self.beside else []
        subprocess.run([*pip, self.package, *mlx], check=True)


# By the names that they go by.
PEERS = {"vllm-mlx": Peer("vllm-mlx", ("--continuous-batching",)), "Rapid-MLX": Peer("rapid-mlx")}
# Asks servers, and is none: see benchy.py.
BENCHY = Peer("llama-benchy", beside=())


def environment(home: Path) -> dict[str, str]:
    """Their caches, which outlive a start, belong to one repetition; and they need tell nobody of it."""
    home.mkdir(parents=True, exist_ok=True)
    return {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "RAPID_MLX_TELEMETRY": "0", "DO_NOT_TRACK": "1"}


def main() -> None:
    for name, peer in (PEERS | {BENCHY.package: BENCHY}).items():
        if not peer.installed:
            print(f"Installing {name} in {peer.folder} ...", flush=True)
            peer.install()
        print(f"{name} {peer.version()}")


if __name__ == "__main__":
    main()
