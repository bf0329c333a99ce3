"""The process that reads large bodies: `python -m server.http.parse_process`.

Of each body it gets first how it is read, a pickled function that names its place in this code, and then the bytes. It
answers with what the function returned, what it raised, and what is to be logged of that. Pickle crosses this border
because both sides are ours: no byte of a client is unpickled, on either. It ends with its parent, whose end closes
stdin.
"""

from __future__ import annotations

import pickle
import sys
import traceback
from typing import BinaryIO

from server.allocator import give_back, keep_little
from server.child.frames import read_frame, write_frame
from server.errors import ConfigiError

_Answer = tuple[object, ConfigiError | None, str]


def serve(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer until `questions` ends."""
    while (how := read_frame(questions)) is not None and (raw := read_frame(questions)) is not None:
        answer: _Answer
        try:
            answer = pickle.loads(how)(raw), None, ""
        except ConfigiError as error:
            answer = None, error, ""
        except BaseException:
            # Panics of native code are no Exception.
            answer = None, ConfigiError(), traceback.format_exc()
        del raw
        write_frame(answers, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))
        del answer
        give_back()


def main() -> None:
    keep_little()
    serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
