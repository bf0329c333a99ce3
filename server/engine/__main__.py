"""`python -m server.engine ADDRESS` starts the engine process: mlx-lm without tokenizers, then all that uses it."""

from __future__ import annotations

from quantize.mlx_lm_alone import import_mlx_lm_alone

if __name__ == "__main__":
    import_mlx_lm_alone()
    from server.engine.process import main

    main()
