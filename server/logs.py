"""Logs on stderr: text for people, one JSON object per line for machines. No prompt text unless `log.prompts`."""

from __future__ import annotations

import json
import logging
import sys
import textwrap
import time

from quantize.printable import printable
from server.settings.types import LogSettings

_LONGEST_TRACEBACK = 20_000
# The standard attributes of a LogRecord; anything else was given as `extra` and is worth writing.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def configure(settings: LogSettings) -> None:
    """Set up logging for this process; called once, by the command."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.root.handlers = [handler]
    logging.root.setLevel(logging.WARNING)
    logging.getLogger("configi").setLevel(settings.level.upper())
    # What uvicorn logs of requests, the guard has logged with their ids; a cut stream it calls an error. What it logs
    # of the lifespan, `http/listen.py` says in one sentence.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={value}" for name, value in _extra(record).items())
        text = f"{clock} {record.levelname.lower():<7} {printable(f'{record.getMessage()}{fields}')}"
        if record.exc_info is None:
            return text
        # Indented: a line of an exception's message cannot pass for one of the log's own.
        trace = printable(self.formatException(record.exc_info), limit=_LONGEST_TRACEBACK, lines=True)
        return f"{text}\n{textwrap.indent(trace, '  ')}"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}
