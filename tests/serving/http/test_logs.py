"""Tests of fastdiff.serving.http.logs: a JSON object a line."""

import json
import logging

from fastdiff.serving.http.logs import JsonLines, write_json_lines


def test_a_record_is_one_line_of_json():
    record = logging.makeLogRecord({"name": "a", "msg": "say %s", "args": ("two\nlines",), "levelname": "INFO"})
    record.__dict__ |= {"request": "id", "status": 200, "created": 0.5, "msecs": 500, "_of_a_factory": 1}
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.500Z",
        "level": "info",
        "message": "say two\nlines",
        "request": "id",
        "status": 200,
    }


def test_a_traceback_is_a_field():
    try:
        raise KeyError("a")
    except KeyError as error:
        record = logging.makeLogRecord({"exc_info": (type(error), error, error.__traceback__)})
    assert "KeyError: 'a'" in json.loads(JsonLines().format(record))["traceback"]


def test_the_servers_log_goes_to_standard_error(capsys):
    loggers = [logging.getLogger(name) for name in ("fastdiff.serving", "uvicorn")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    try:
        write_json_lines()
        logging.getLogger("fastdiff.serving").info("here", extra={"request": "a"})
        logging.getLogger("uvicorn.error").info("not here")
        (entry,) = capsys.readouterr().err.splitlines()
        assert json.loads(entry)["request"] == "a"
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
