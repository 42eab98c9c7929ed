"""A time limit for the headers of requests, which uvicorn does not set."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS_SECONDS = 20.0  # from the connection, or the first byte of a further request, to the end of its headers


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose headers arrive too slowly."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Receive data, and start or stop the timeout for headers.

        It starts with a request and stops when its headers are complete.
        """
        super().data_received(data)
        if self._answering():
            self._forget()
        elif self._limit is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timeout."""
        self._forget()
        super().connection_lost(exc)

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._limit = self.loop.call_later(HEADERS_SECONDS, self._expire)

    def _forget(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _expire(self) -> None:
        self._limit = None
        if not self._answering():
            self.transport.close()
