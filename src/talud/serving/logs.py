"""The service's log: lines for a terminal or, as JSON, for what gathers logs; and which libraries have a say in it."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from talud.serving.jobs import Job, Request

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
    """Write the log to stderr, in one line for each event."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)


def of_job(job: Job) -> dict[str, Any]:
    """Return what a line about a job holds beside its message: its id and the name of its key."""
    return {"job": job.id, "key": job.key}


def shown(request: Request) -> str:
    """Return the raster of a request without the query of its address, which may hold a signature."""
    return request.raster.partition("?")[0]


class TextFormatter(logging.Formatter):
    """Lines for a person; a traceback follows its line."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """Put the job and the key before the message; a message takes one line whatever it quotes."""
        known = [f"{name} {value}" for name in ("job", "key") if (value := getattr(record, name, None))]
        record.message = _in_one_line(f"{', '.join(known)}: {record.message}" if known else record.message)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line, a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
    """Return a message without characters that would begin a new line, which a client's words may hold."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message)
