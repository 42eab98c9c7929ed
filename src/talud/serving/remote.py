"""Rasters of other machines, fetched from where the agency allows it, and notes to such places.

What is allowed is said in `Settings.allowed`: `data.example.org` for a host at the usual ports, `data.example.org:8443`
for one at that port, `s3://bucket` for a bucket. A name on the list must lead to public addresses, all of them, and
the connection goes to the very address that was judged. An address of the agency's own network is allowed only where
the list names it as such, with its port: `10.1.2.3:8080`, `[fd00::2]:8080`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from talud.errors import SourceError, TaludError
from talud.files import replacing
from talud.raster import PATIENCE
from talud.serving import places
from talud.serving.settings import PREFIX, Settings

SCHEMES = ("http://", "https://", "s3://")  # by which a reference to another machine is known
HOPS = 3  # redirections that are followed
CHUNK = 1 << 20  # bytes
WAIT = httpx.Timeout(30, connect=10)  # seconds for the next bytes
LONGEST = 3600  # seconds for a raster
NOTE_WAIT = 10  # seconds for a note
NOT_PUBLIC = tuple(  # of IPv6: IPv4 in other words (mapped, NAT64, 6to4, Teredo), and sites of old
    ipaddress.ip_network(network)
    for network in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10")
)
_COPY = """
import resource, sys
import rasterio.shutil
source, target, largest = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
rasterio.shutil.copyfiles(source, target)
"""
_LOG = logging.getLogger(__name__)


def fetch(url: str, folder: Path, settings: Settings) -> Path:
    """Fetch a raster into a folder.

    Args:
        url: http, https or s3.
        folder: which is made where it is missing.
        settings: of the agency.

    Returns:
        The file, under the last part of its origin's name; it is there whole, or not at all.

    Raises:
        SourceError: the place is not allowed, gives nothing, or what it gives is no GeoTIFF or too large.
        OutputError: the file cannot be written.
    """
    path = folder.resolve() / _file_name(url)
    with replacing(path) as scratch:
        if url.startswith("s3://"):
            _copy_object(url, scratch, settings)
        else:
            _download(allowed(url, settings), scratch, settings)
        places.check(scratch, scratch.parent, path.name)
    return path


def notify(url: str, document: Mapping[str, object], settings: Settings) -> None:
    """Post a JSON document to a place that is allowed; where that fails, the log says so, and nothing else."""
    try:
        with _answer("POST", allowed(url, settings), NOTE_WAIT, json=document) as response:
            if not response.is_success:
                _LOG.warning("%s answered %d to a note", response.request.headers["Host"], response.status_code)
    except (TaludError, httpx.HTTPError) as error:
        _LOG.warning("a note was not delivered: %s", error)


def allowed(url: str, settings: Settings) -> httpx.URL:
    """An address of the web that the agency allows; its name is not looked up yet.

    Raises:
        SourceError: it is none.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise SourceError(f"{url[:100]!a}: no address of the web") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SourceError(f"{url[:100]!a}: no address of the web; expected https://HOST/PATH")
    if parsed.userinfo:
        raise SourceError(f"{parsed.host}: an address may hold no name and password")
    if _entry(parsed) not in {entry.lower() for entry in settings.allowed}:
        raise SourceError(
            f"{_entry(parsed)}: not among the places that this service fetches from; whoever runs it can allow it "
            f"({PREFIX}ALLOWED)"
        )
    return parsed


def _entry(url: httpx.URL) -> str:
    """By what the list of allowed places names an address: `host`, or `host:port` for ports that are not the usual."""
    host = url.raw_host.decode("ascii").lower()
    host = f"[{host}]" if ":" in host else host
    return host if url.port is None else f"{host}:{url.port}"


def _addresses(url: httpx.URL) -> list[str]:
    """The addresses of a host, all of which are public, or the one that the list of allowed places names as such.

    Raises:
        SourceError: there are none, or one is not public.
    """
    host, port = url.raw_host.decode("ascii"), url.port or {"http": 80, "https": 443}[url.scheme]
    if url.port is not None and _is_address(host):
        return [host]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SourceError(f"{host}: no such host") from error
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    if not addresses or not all(map(is_public, addresses)):
        raise SourceError(f"{host}: not a public address; the agency's own ones are allowed by address and port alone")
    return addresses


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and leads to no other."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # of a link, with its zone
        return False
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not special and not any(ip in network for network in NOT_PUBLIC)


@contextmanager
def _answer(
    method: str,
    url: httpx.URL,
    wait: httpx.Timeout | float,
    json: Mapping[str, object] | None = None,
) -> Iterator[httpx.Response]:
    """What a host answers, its body not read yet.

    The connection goes to an address that was judged, and TLS is for the host's name; no proxy, cookie or password of
    this machine takes part.

    Raises:
        SourceError: the host has no public address.
        httpx.HTTPError: it does not answer.
    """
    host = url.raw_host.decode("ascii")
    addresses = _addresses(url)
    headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "talud"}
    with httpx.Client(verify=httpx.create_ssl_context(), trust_env=False, timeout=wait) as client:
        for address in addresses:
            request = client.build_request(
                method, url.copy_with(host=address), headers=headers, json=json, extensions={"sni_hostname": host}
            )
            try:
                response = client.send(request, stream=True)
            except httpx.ConnectError:
                if address == addresses[-1]:
                    raise
                continue
            try:
                yield response
            finally:
                response.close()
            return


def _download(url: httpx.URL, target: Path, settings: Settings) -> None:
    """Write what lies at an address to a file, over a few redirections, each of which is judged as the first."""
    until = time.monotonic() + LONGEST
    for _ in range(HOPS + 1):
        try:
            with _answer("GET", url, WAIT) as response:
                if response.has_redirect_location:
                    url = allowed(str(url.join(response.headers["Location"])), settings)
                    continue
                if response.status_code != httpx.codes.OK:
                    raise SourceError(f"{_said(url)}: the host answers {response.status_code}")
                _write(response, target, settings.upload_bytes, until, _said(url))
                return
        except httpx.InvalidURL as error:
            raise SourceError(f"{_said(url)}: leads to no address") from error
        except httpx.HTTPError as error:
            raise SourceError(f"{_said(url)}: cannot be fetched: {type(error).__name__}") from error
    raise SourceError(f"{_said(url)}: leads on and on; at most {HOPS} redirections are followed")


def _write(response: httpx.Response, target: Path, largest: int, until: float, name: str) -> None:
    """Write an answer's bytes as they come, whatever it says of their number."""
    written = 0
    with target.open("wb") as file:
        for chunk in response.iter_raw(CHUNK):
            written += len(chunk)
            if written > largest:
                raise SourceError(f"{name}: larger than {largest:,} bytes, the most that is fetched")
            if time.monotonic() > until:
                raise SourceError(f"{name}: took longer than {LONGEST} s")
            file.write(chunk)


def _copy_object(url: str, target: Path, settings: Settings) -> None:
    """Copy an object of S3, in a process of its own: it may write no larger file, and ask for no other object."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    named = re.fullmatch("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket) and key.isprintable() and not {*key} & {*"\\?#"}
    if not named or any(part in ("", ".", "..") for part in key.split("/")):
        raise SourceError(f"{url[:100]!a}: no object of S3; expected s3://BUCKET/KEY")
    if f"s3://{bucket}" not in settings.allowed:
        raise SourceError(
            f"s3://{bucket}: not among the buckets that this service reads; whoever runs it can allow it "
            f"({PREFIX}ALLOWED)"
        )
    source = f"/vsis3/{bucket}/{key}"
    options = {"CPL_VSIL_CURL_ALLOWED_FILENAME": source, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    command = [sys.executable, "-c", _COPY, source, str(target), str(settings.upload_bytes + 1)]
    try:
        done = subprocess.run(
            command, env=PATIENCE | dict(os.environ) | options, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=LONGEST, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"s3://{bucket}/{key}: took longer than {LONGEST} s") from error
    if target.exists() and target.stat().st_size > settings.upload_bytes:  # GDAL may not notice that it was stopped
        raise SourceError(f"s3://{bucket}/{key}: larger than {settings.upload_bytes:,} bytes, the most that is fetched")
    if done.returncode:
        _LOG.warning("s3://%s/%s: %s", bucket, key, done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
        raise SourceError(f"s3://{bucket}/{key}: no raster, or not for this service's credentials")


def _said(url: httpx.URL) -> str:
    """An address without its query, which may hold a signature."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"[:200]


def _file_name(url: str) -> str:
    """The last part of an address, in letters that no file system minds, ending in .tif."""
    try:
        path = httpx.URL(url).path
    except (httpx.InvalidURL, UnicodeError):  # which is told of when it is judged
        path = ""
    stem = re.sub(r"(?i)\.tiff?$", "", path.rpartition("/")[2])
    plain = re.sub(r"[^\w-]+", "_", stem)[:80].strip("_")
    return f"{plain or 'raster'}.tif"
