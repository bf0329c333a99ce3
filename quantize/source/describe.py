"""What config.json leaves to the class of a model: `python -m quantize.source.describe FOLDER` prints it as JSON.

A process of its own, since transformers and mlx-lm take seconds to import and have their own view of a damaged file.
Makers leave out what is the default in transformers, so that is asked first; of the types that only mlx-lm knows, its
`ModelArgs`.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.folder.context import NAMES, as_count, extended, stated, stated_context
from quantize.foreign_json import read_object
from quantize.printable import print_json
from quantize.source.compat import configuration, model_classes

# Some classes make a list of a name for each layer.
_MOST_LAYERS = 10_000


def context_length(config: Mapping[str, Any]) -> int | None:
    """For how many tokens the model was made; None if neither class says it."""
    text = config.get("text_config")
    if not all(_is_modest(level) for level in (config, text) if isinstance(level, dict)):
        return None
    for ask in (_of_transformers, _of_mlx_lm):
        # Whatever they make of a config.json of others: what they refuse, they do not tell.
        with contextlib.suppress(Exception):
            if length := ask(config):
                return length
    longest, rope = stated(config)
    return extended(longest, rope) if longest else None


def _of_transformers(config: Mapping[str, Any]) -> int | None:
    made = configuration(config).get_text_config()
    longest = as_count(getattr(made, NAMES[0], None))
    return extended(longest, getattr(made, "rope_parameters", None)) if longest else None


def _of_mlx_lm(config: Mapping[str, Any]) -> int | None:
    made = model_classes(config)[1].from_dict(copy.deepcopy(dict(config)))
    text = getattr(made, "text_config", None)
    if isinstance(text, dict) and "model_type" in text:
        return _of_mlx_lm(text)
    # Where only some layers are scaled, that was part of the training.
    rope = None if hasattr(made, "rope_local_base_freq") else _first(made, "rope_scaling", "rope_parameters")
    longest = next((count for name in NAMES if (count := as_count(_first(made, name) or config.get(name)))), None)
    return extended(longest, rope) if longest else None


def _first(made: object, *names: str) -> Any:
    return next((value for name in names if (value := getattr(made, name, None)) is not None), None)


def _is_modest(config: Mapping[str, Any]) -> bool:
    return all(
        not isinstance(value, int | float) or value <= _MOST_LAYERS for name, value in config.items() if "layer" in name
    )


def main() -> None:
    # Both write what they think of the machine.
    logging.disable()
    with contextlib.redirect_stdout(sys.stderr):
        config = read_object((Path(sys.argv[1]) / "config.json").read_bytes())
        # A very long config.json is not read by who asks, whatever it says.
        length = stated_context(config) or context_length(config)
    print_json({"context_length": length})


if __name__ == "__main__":
    main()
