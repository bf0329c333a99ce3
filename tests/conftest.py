"""Ctrl-C reaches the processes that tests start, even where the run itself ignores it, as one in the background does."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
