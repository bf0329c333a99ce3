"""What can go wrong with a plan, a build or a check: one sentence for the user.

    QuantizeError
    ├── PolicyError       the policy does not exist, is malformed, or does not name a role of the model
    ├── SourceError       the checkpoint cannot be read, is damaged, or is of a kind that is not supported
    │   └── HubError      the Hub does not provide it
    ├── OutputError       the output folder cannot be written, already exists, or does not fit on the disk
    └── VerifyError       a model folder contradicts its manifest or its config

The sentences contain only paths that the user gave; details are on stderr.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from quantize.printable import printable


class QuantizeError(Exception):
    """`retryable`: the same call may succeed later."""

    retryable = False

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        # Names from the files of others are in it.
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.retryable = retryable


def first_line(error: BaseException) -> str:
    """Of what a library said; the name of the error where it said nothing."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]} is missing"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextlib.contextmanager
def native_errors(sentence: str) -> Iterator[None]:
    """Whatever comes out of native code that reads the files of others becomes a SourceError with `sentence`.

    A panic of Rust is a BaseException and no Exception.
    """
    try:
        yield
    except (QuantizeError, OSError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise SourceError(f"{sentence} ({type(error).__name__}: {error}).") from error


class PolicyError(QuantizeError): ...


class SourceError(QuantizeError): ...


class HubError(SourceError):
    """`again`: worth retrying within the same call."""

    def __init__(self, message: str, *, retryable: bool, again: bool = False) -> None:
        super().__init__(message, retryable=retryable)
        self.again = again


class OutputError(QuantizeError): ...


class VerifyError(QuantizeError): ...


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "the folder cannot be written to",
    errno.EPERM: "the folder cannot be written to",
    errno.EROFS: "the disk is read-only",
    errno.ENOTDIR: "part of the path is not a folder",
    errno.EEXIST: "what is there is not a folder",
}


def reason_of(error: OSError) -> str:
    """Why something could not be written, as half a sentence."""
    return _DISK.get(error.errno or 0, error.strerror or type(error).__name__)


def output_error(error: OSError, doing: str) -> OutputError:
    """`error` from writing as a sentence; a full disk may have room again later."""
    retryable = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputError(
        f"{doing} failed: {reason_of(error)}. Finished work is kept; run the same command to resume.",
        retryable=retryable,
    )
