"""Reads a checkpoint end to end, as a build does: python -m tests.support.read_checkpoint SOURCE [--scratch DIR] [...].

JSON lines: {"tensors": {name: shape}, ...} from the headers, {"shard": name, "files": in scratch} as each is opened,
{"waiting": [shard, here, size]} while it comes, {"sha256": of all rows} or {"error": sentence} at the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from quantize.errors import QuantizeError
from quantize.source.checkpoint import Checkpoint, HubOptions
from quantize.source.sources import open_checkpoint


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--headers-only", action="store_true")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--timeout", type=float, default=10)
    args = parser.parse_args()
    keep = args.scratch is None
    options = HubOptions(args.scratch, keep, args.offline, args.timeout, 0.02, lambda *waited: say(waiting=waited))
    try:
        checkpoint = open_checkpoint(args.source, options)
        tensors = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        say(tensors=tensors, scratch_bytes=checkpoint.scratch_bytes, revision=checkpoint.revision)
        if not args.headers_only:
            say(sha256=read(checkpoint, args.scratch), auxiliary_files=sorted(checkpoint.auxiliary_files()))
    except QuantizeError as error:
        say(error=error.message, retryable=error.retryable)
        return 1
    return 0


def read(checkpoint: Checkpoint, scratch: Path | None) -> str:
    found = hashlib.sha256()
    names = [shard.name for shard in checkpoint.shards]
    for name, then in zip(names, [*names[1:], None], strict=True):
        with checkpoint.open(name, then) as shard:
            files = scratch.rglob("*") if scratch else ()
            say(shard=name, files=sorted(path.name for path in files if path.is_file()))
            for tensor in checkpoint.tensors.values():
                if tensor.shard == name:
                    found.update(np.asarray(shard.rows(tensor, 0, tensor.matrix[0])).tobytes())
    return found.hexdigest()


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
