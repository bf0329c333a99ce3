"""Puts the engine through every architecture of the installed mlx-lm: `python -m tools.architectures [NAME...]`.

Some minutes. It writes what the table in docs/architectures.md is made of (`make docs-tables` then makes it), and
prints what differs from the bare model. With names, only those are observed again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support import architecture_table
from tests.support.architecture_run import observe
from tests.support.architectures import CHUNK_DEPENDENT, UNTRIED, names


def main(chosen: list[str]) -> int:
    every = [name for name in names() if name not in UNTRIED]
    observed = architecture_table.read()[1] if chosen else {}
    status = 0
    for name in chosen or every:
        with tempfile.TemporaryDirectory() as folder:
            result = observed[name] = observe(Path(folder), name)
        print(f"{name}: {result.refused or result.wrong or 'as the bare model'}", flush=True)
        if result.wrong and name not in CHUNK_DEPENDENT:
            status = 1
    architecture_table.write({name: observed[name] for name in every if name in observed})
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
