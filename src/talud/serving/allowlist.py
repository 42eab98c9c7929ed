"""The allow-list of locations for fetched rasters and for callbacks.

`data.example.org` names a host at the usual ports, `data.example.org:8443` one at that port, `s3://bucket` a bucket. A
name must lead to public addresses, all of them. An address of the agency's own network is named with its port:
`10.1.2.3:8080`, `[fd00::2]:8080`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

import httpx

S3 = "s3://"
PORTS = {"http": 80, "https": 443}
BUCKET = re.compile("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"({_LABEL}\.)+(?!\d+$){_LABEL}")
NOT_PUBLIC = tuple(  # of IPv6: IPv4 in other words (mapped, NAT64, 6to4, Teredo), and sites of old
    ipaddress.ip_network(network)
    for network in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10")
)


def entry(text: str) -> str:
    """Return an entry of the list in the form that `permits` compares.

    Raises:
        ValueError: no address could ever match it; the message says how to write it.
    """
    if text.casefold().startswith(S3):
        return _bucket(text)
    if "://" in text or any(sign in text for sign in "/?#@*\\") or text != text.strip():
        raise ValueError(f"{_quoted(text)} is not a host; {_proposal(text)}")
    try:
        parsed = httpx.URL(f"https://{text}")
        host = host_of(parsed)
    except (httpx.InvalidURL, UnicodeError):
        host = ""
    port = re.fullmatch(r".*?(?::(\d+))?", text, re.DOTALL)
    stated = int(port[1]) if port and port[1] and not text.endswith("]") else None
    if not host or text.endswith(":") or (stated is not None and not 0 < stated < 65536):
        raise ValueError(f"{_quoted(text)} is not a host, or has no port from 1 to 65535; {_EXPECTED}")
    if is_address(host.strip("[]")):
        if stated is None and not is_public(host.strip("[]")):
            raise ValueError(f"{_quoted(text)} is an address of a network of your own; name its port too: {host}:8080")
    elif not _NAME.fullmatch(host):
        raise ValueError(
            f"{_quoted(text)} is not a name of public addresses; {_EXPECTED}; name a host of your own network "
            'by address and port, such as "10.1.2.3:8080"'
        )
    return host if stated is None else f"{host}:{stated}"


def permits(allowed: Iterable[str], url: httpx.URL) -> bool:
    """Check whether the list holds the host and port of an address."""
    host = host_of(url)
    names = {f"{host}:{port_of(url)}"} | ({host} if port_of(url) == PORTS[url.scheme] else set())
    return not names.isdisjoint(allowed)


def names_address(allowed: Iterable[str], url: httpx.URL) -> bool:
    """Check whether the list names an IP address with its port.

    Such an address need not be public.
    """
    return is_address(url.raw_host.decode("ascii")) and f"{host_of(url)}:{port_of(url)}" in allowed


def host_of(url: httpx.URL) -> str:
    """Return the host of an address in the list's form: lower case, IPv6 in brackets."""
    host = url.raw_host.decode("ascii").lower()
    return f"[{host}]" if ":" in host else host


def port_of(url: httpx.URL) -> int:
    """Return the port of an address."""
    return url.port or PORTS[url.scheme]


def is_address(host: str) -> bool:
    """Check whether a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Check whether an IP address is public and not a route to a private one."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # of a link, with its zone
        return False
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not special and not any(ip in network for network in NOT_PUBLIC)


_EXPECTED = 'expected "data.example.org", "data.example.org:8443" or "s3://bucket"'


def _bucket(text: str) -> str:
    name = text[len(S3) :]
    if not (text.startswith(S3) and BUCKET.fullmatch(name)):
        first = name.split("/")[0].lower()
        instead = f'name the bucket alone: "{S3}{first}"' if BUCKET.fullmatch(first) else _EXPECTED
        raise ValueError(f"{_quoted(text)} is not a bucket of S3; {instead}")
    return text


def _proposal(text: str) -> str:
    """Explain how to write a wrong entry that names a host."""
    found = re.fullmatch(
        r"\s*(?:https?://)?([\w-]+(?:\.[\w-]+)+(?::\d+)?)(?:[/?#].*)?\s*", text, re.DOTALL | re.IGNORECASE
    )
    return f'name the host alone: "{found[1]}"' if found else _EXPECTED


def _quoted(text: str) -> str:
    return f"{text[:100]!a}"
