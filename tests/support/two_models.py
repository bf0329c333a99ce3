"""A server of two models on scripted engines."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.running import Running, config, running_script


def states(server: Running) -> dict[str, str]:
    return {model["id"]: model["state"] for model in server.get("/v1/models")[1]["data"]}


def serving_two(
    folder: Path, tiny: Path, other: Path, *script: str, **sections: Mapping[str, Any]
) -> contextlib.AbstractContextManager[Running]:
    """Two models, `tiny` and `other`, on scripted engines."""
    path = config(folder, tiny, **sections)
    path.write_text(path.read_text() + f'[[models]]\nid = "other"\nacquire = "local"\npath = "{other}"\n')
    return running_script(path, script, folder)
