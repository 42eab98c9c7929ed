"""The address by which clients reach the service, for links in its answers."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request


@dataclass(frozen=True)
class Address:
    """The address of a service.

    The header Host is the client's word: links made of it would lead wherever a client, or who poisons a cache between,
    wants. Where no key is asked for it has been checked to name this machine.

    Attributes:
        public: as the operator set it, without a slash at its end; empty: not set.
        open_to_all: whether no key is asked for.
    """

    public: str
    open_to_all: bool

    def base(self, request: Request) -> str:
        """Return the start of all links; an empty text makes them relative."""
        if self.public or not self.open_to_all:
            return self.public
        return str(request.base_url).rstrip("/")

    def of_link(self, request: Request, link: str) -> str:
        """Return a link with the service's own address instead of the header Host."""
        own = str(request.base_url).rstrip("/")
        return f"{self.base(request)}{link.removeprefix(own)}" if link.startswith(f"{own}/") else link

    def secure(self, request: Request) -> bool:
        """Return whether clients reach the service by TLS."""
        return (self.public or request.url.scheme).startswith("https")
