"""Ctrl-C reaches the processes that tests start, also in a run that ignores it, as one in the background does."""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
