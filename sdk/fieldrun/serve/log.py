"""One line of JSON per event. Texts are never written to the log."""

from __future__ import annotations

import json
import logging
import time

__all__ = ["JsonLines", "log"]

_logger = logging.getLogger("fieldrun.serve")


def log(level: int, event: str, *, trace: BaseException | None = None, **facts: object) -> None:
    """Log `event` with its facts; `trace` adds the traceback of an error that nobody foresaw."""
    _logger.log(level, "%s %s", event, facts, exc_info=trace, extra={"event": event, "facts": facts})


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object: time (UTC), level, event, and the facts of `log`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        value = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        if hasattr(record, "facts"):
            value |= {"event": record.__dict__["event"], **record.__dict__["facts"]}
        else:
            value["event"] = record.getMessage()
        if record.exc_info:
            value["trace"] = self.formatException(record.exc_info)
        return json.dumps(value, default=str)
