"""The server's log: a JSON object a line, with the request's id."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

__all__ = ["LOGGER", "JsonLines", "write_json_lines"]

LOGGER = "fastdiff.serving"

# What every record of `logging` has; all else was given by "extra".
_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, message, what was given as "extra", a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        # With an underscore: of a record factory, as Ray's.
        entry |= {key: value for key, value in record.__dict__.items() if key not in _OWN and key[0] != "_"}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def write_json_lines(level: int = logging.INFO) -> None:
    """Let the server's log, and uvicorn's, go to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in (LOGGER, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level if name == LOGGER else max(level, logging.WARNING))
