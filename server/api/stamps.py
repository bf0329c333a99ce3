"""What every answer is stamped with: an id of its own, and the time. HTTP process."""

from __future__ import annotations

import time
import uuid


def answer_id(prefix: str) -> str:
    return f"{prefix}{uuid.uuid4().hex}"


def wall_time() -> int:
    return int(time.time())
