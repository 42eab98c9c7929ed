"""The service's log, for a terminal or as JSON.

It also defines which libraries may write to the log.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from talud.serving.tables import Job, Request

Style = Literal["text", "json"]
log = logging.getLogger("talud.service")
_QUIET = {  # logger of a library → the least level that an operator has use for
    "distributed": logging.CRITICAL,  # talud itself says when workers are lost
    "httpx": logging.CRITICAL,
    "alembic": logging.WARNING,
    "rasterio": logging.WARNING,  # what GDAL signals is in the message of the job or the answer that fails of it
    "pyogrio": logging.WARNING,
    "asyncio": logging.WARNING,
}


def configure(style: Style) -> None:
    """Configure the log: one line on stderr for each event."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)


def of_job(job: Job) -> dict[str, Any]:
    """Return the extra fields of a line about a job: its id and its key's name."""
    return {"job": job.id, "key": job.key}


def shown(request: Request) -> str:
    """Return a request's raster without query, which may hold a signature."""
    return request.raster.partition("?")[0]


class TextFormatter(logging.Formatter):
    """Log lines for people, each followed by its traceback."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Format the message on one line, with the job and the key before it."""
        known = [f"{name} {value}" for name in ("job", "key") if (value := getattr(record, name, None))]
        record.message = _in_one_line(f"{', '.join(known)}: {record.message}" if known else record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Log lines as JSON objects that include the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "job": getattr(record, "job", None),
            "key": getattr(record, "key", None),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in line.items() if value is not None})


def _in_one_line(message: str) -> str:
    """Escape characters of a message that would start a new line.

    The text of a client may contain them.
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message)
