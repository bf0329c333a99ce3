"""What a Mac says of its power and memory; nothing elsewhere. It was tested with recorded answers, not run on a Mac."""

from __future__ import annotations

import re
import subprocess
import sys

_PMSET = ("/usr/bin/pmset", "-g")


def low_power_mode(said: str | None = None) -> bool | None:
    """Whether Low Power Mode is on, by what `pmset -g` said; None where nobody can tell."""
    if said is None:
        said = _pmset()
    found = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d)", said, re.MULTILINE)
    return None if found is None else found.group(1) == "1"


def _pmset() -> str:
    if sys.platform != "darwin":
        return ""
    try:
        return subprocess.run(_PMSET, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
