"""What every section of the settings is made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict

_SIZE = re.compile(r"\s*\d+(\.\d+)?\s*([kmgtp]i?)?b?\s*", re.IGNORECASE)


def _checked(value: Any) -> Any:
    """pydantic 2 reads the beginning alone: 80 bytes for "80%", one for "1,5GB"."""
    fits = _SIZE.fullmatch(value) is not None if isinstance(value, str) else type(value) in (int, ByteSize)
    if not fits:
        raise ValueError(f'{value!r:.40} is no size: write bytes, or text like "4GB", "1.5GB" or "512MiB"')
    return value


Size = Annotated[ByteSize, BeforeValidator(_checked)]
# A path as people write it, with ~.
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
