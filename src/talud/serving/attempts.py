"""Keys that open nothing, counted by where they come from: who tries many waits."""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

log = logging.getLogger("talud.service")
ALLOWED = 10  # wrong keys of one address
WITHIN = 60.0  # seconds
REMEMBERED = 10_000  # addresses, the latest


@dataclass(frozen=True)
class Attempts:
    """Wrong keys of late.

    Attributes:
        clock: seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _of: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def failed(self, address: str) -> int:
        """Count one wrong key.

        Returns:
            How many seconds the address has to wait, or 0.
        """
        now, network = self.clock(), _network(address)
        with self._lock:
            since, count = self._of.pop(network, (now, 0))
            if now - since >= WITHIN:
                since, count = now, 0
            self._of[network] = since, count + 1
            if len(self._of) > REMEMBERED:
                self._of.popitem(last=False)
        if count == ALLOWED:  # once, since attempts continue
            log.warning("%s: %s wrong keys within %d s; more are refused for a while", network, count, WITHIN)
        return 0 if count < ALLOWED else int(since + WITHIN - now) + 1


def _network(address: str) -> str:
    """An address, or, where it is of IPv6, its network, for whoever has one address there has them all."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # of a test, or a socket of the file system
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))
