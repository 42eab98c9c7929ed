"""Outages of the database, and retries until they end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from talud.text import first_line

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 10.0
RETRY_AFTER_SECONDS = 10  # of a request that is refused because of an outage

Result = TypeVar("Result")
_LOG = logging.getLogger("talud.service")


class Stopped(Exception):  # noqa: N818 - no error
    """An exception that ends a job which was dismissed or whose service ends."""


def is_outage(error: SQLAlchemyError) -> bool:
    """Check whether an error is an outage: locked, full, away or restarted.

    Values that it refuses are no outage: the same call would fail again.
    """
    return isinstance(error, DBAPIError | PoolTimeoutError) and not isinstance(error, DataError | IntegrityError)


def wait_out(call: Callable[[], Result], ending: threading.Event) -> Result:
    """Retry a call of the database with growing pauses until it succeeds.

    Args:
        call: the call, which may be made more than once although its first commit reached the database.
        ending: the event after which nothing is repeated.

    Raises:
        Stopped: the service ends before the database answers.
        SQLAlchemyError: the call fails for another reason than an outage.
    """
    pause, since = FIRST_PAUSE_SECONDS, None
    while True:
        try:
            result = call()
        except SQLAlchemyError as error:
            if not is_outage(error):
                raise
            if since is None:
                since = time.monotonic()
                _LOG.warning("the database does not answer; trying again: %s", first_line(error))
        else:
            if since is not None:
                _LOG.warning("the database answers again, after %.0f s", time.monotonic() - since)
            return result
        if ending.wait(pause):
            raise Stopped
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
