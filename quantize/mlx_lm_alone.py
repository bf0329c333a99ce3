"""mlx-lm without what it imports for tokenizers and downloads, for processes that do neither with it.

mlx-lm 0.32.2 imports transformers and huggingface_hub wherever one of its modules is imported: 1.0 s of CPU and 36 MB,
of the 1.2 s and 79 MB of an engine that starts. This can go when mlx-lm imports them where it uses them; until then
`tests/quantize/test_mlx_lm_alone.py` says whether its models do without them.
"""

from __future__ import annotations

import sys
from types import ModuleType

_PACKAGES = ("huggingface_hub", "transformers", "transformers.tokenization_utils_base")


class _Name:
    """Whatever is imported from a package that is left out."""

    @staticmethod
    def register(*_: object, **__: object) -> None:
        """AutoTokenizer is told of a tokenizer of mlx-lm's own."""


class _LeftOut(ModuleType):
    def __getattr__(self, name: str) -> type[_Name]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name


def import_mlx_lm_alone() -> None:
    """For good: this process can load no tokenizer through mlx-lm. Everybody else gets the packages themselves.

    An mlx-lm that is there already, or a package, stays as it is.
    """
    if "mlx_lm" in sys.modules:
        return
    left_out = {name: _LeftOut(name) for name in _PACKAGES if name not in sys.modules}
    sys.modules.update(left_out)
    try:
        import mlx_lm  # noqa: F401
    finally:
        for name in left_out:
            del sys.modules[name]
