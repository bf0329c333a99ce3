"""`python -m server.engine ADDRESS`: starts the engine process without what mlx-lm imports and the engine never uses.

mlx-lm 0.32.2 imports transformers and huggingface_hub for tokenizers and downloads. Both happen elsewhere, and they are
1.0 of the 1.2 s of CPU that this process takes to start, and 36 of its 79 MB. This file can go when mlx-lm imports
them where it uses them; until then `tests/server/engine/test_start.py` says whether its models do without them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType

_UNUSED = ("huggingface_hub", "transformers", "transformers.tokenization_utils_base")


class _Name:
    """Whatever is imported from a module that is not there."""

    @staticmethod
    def register(*_: object, **__: object) -> None:
        """AutoTokenizer is told of a tokenizer of mlx-lm's own."""


class _NotThere(ModuleType):
    def __getattr__(self, name: str) -> type[_Name]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name


@contextlib.contextmanager
def without_unused_packages() -> Iterator[None]:
    """Imports inside get names without substance from the unused packages; later ones get the packages themselves."""
    sys.modules.update({name: _NotThere(name) for name in _UNUSED})
    try:
        yield
    finally:
        for name in _UNUSED:
            del sys.modules[name]


if __name__ == "__main__":
    with without_unused_packages():
        from server.engine.process import main
    main()
