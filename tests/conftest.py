"""Ctrl-C reaches the processes that tests start, also in a run that ignores it, as one in the background does.

`--record`: clients are driven in their newest versions, and what they could do is written down; see `tests/clients`.
"""

from __future__ import annotations

import gc
import signal

import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)
# Nothing that collection makes is garbage, and looking through all of it again and again is an eighth of its time.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="drive newest clients, and write what they can do")


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
