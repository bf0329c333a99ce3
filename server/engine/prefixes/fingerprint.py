"""What a model folder's weights are, in a hash that costs milliseconds. Runs in the engine process.

Names the prefixes on disk that belong to a model. Hashing 11 GB would take as long as loading them; so config, headers
and sizes are hashed whole and the weights by samples all over each file: another checkpoint or another quantization
of the same model differs in every one of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_SAMPLES = 64
_SAMPLE_BYTES = 4096
_HEAD_BYTES = 2**20


def fingerprint(folder: Path, *versions: str) -> str:
    """Hex digits. `versions` are of whatever else shapes a KV cache."""
    digest = hashlib.sha256("\n".join(versions).encode())
    for path in [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]:
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_HEAD_BYTES))
            for sample in range(_SAMPLES):
                file.seek(size * sample // _SAMPLES)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
