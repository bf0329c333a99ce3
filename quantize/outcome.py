"""How a command ends: whatever a user can cause is one sentence on stderr and exit code 1, never a traceback.

That includes a terminal that cannot write some characters, and an output that is full or has nobody left to read it.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import sys
from collections.abc import Callable

from quantize.printable import echo

# What a write to stdout fails with, and no name of a file is given.
_OUTPUT = {
    errno.ENOSPC: "the output is full",
    errno.EIO: "the output cannot be written to",
    errno.EDQUOT: "the quota of the output is used up",
}


def run(name: str, command: Callable[[], object], failures: tuple[type[Exception], ...]) -> None:
    """`command` with its `failures` as sentences that begin with `name`. It may leave by SystemExit."""
    for stream in (sys.stdout, sys.stderr):
        # None, or something of a test's, has no encoding to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            command()
        finally:
            # What is still to be written is written here, where it can be said that it was not. Closed, it is None.
            if sys.stdout is not None:
                sys.stdout.flush()
            # All memory goes back with the process: to look through it for garbage is a seventh of a short command.
            gc.freeze()
    except failures as error:
        _fail(f"{name}: {error}")
    except UnicodeEncodeError as error:
        if error.reason != "surrogates not allowed":
            raise
        _fail(f"{name}: the name of a file or folder is not text in this locale; a UTF-8 locale reads most names.")
    except OSError as error:
        if error.filename is not None or error.errno not in (*_OUTPUT, errno.EPIPE):
            raise
        _forget_output()
        # Who stopped reading, as `head` does, has seen enough.
        _fail(None if error.errno == errno.EPIPE else f"{name}: {_OUTPUT[error.errno]}.")


def _forget_output() -> None:
    """What is still in its buffer would be written, and fail, once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str | None) -> None:
    if sentence is not None:
        with contextlib.suppress(OSError):
            echo(sentence, err=True)
    sys.exit(1)
