"""The real engine process with a model that fails: `python -m tests.support.failing_engine ERROR TOKEN ADDRESS`.

Whenever it is to read TOKEN, the model raises what ERROR says, as MLX would.
"""

from __future__ import annotations

import sys

from quantize.mlx_lm_alone import import_mlx_lm_alone
from tests.support.metal import failing


def main() -> None:
    import_mlx_lm_alone()
    from mlx_lm.models.llama import Model

    from server.engine import process

    error, token, address = sys.argv[1:]
    sys.argv = ["engine", address]
    with failing(Model, error, int(token)):
        process.main()


if __name__ == "__main__":
    main()
