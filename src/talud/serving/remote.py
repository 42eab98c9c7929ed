"""Downloads of rasters from allowed locations, and callbacks to such locations.

The connection goes to the very address that was judged; `settings` says which places are allowed. A fetch ends within
seconds once nobody wants it any more, whatever the other side does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import anyio.to_thread
import httpx

from talud.errors import ForbiddenError, SourceError, TaludError
from talud.files import atomic_replace
from talud.raster import NETWORK_TIMEOUTS
from talud.serving import raster_paths
from talud.serving.settings import (
    BUCKET_PATTERN,
    DEFAULT_PORTS,
    ENV_PREFIX,
    S3_SCHEME,
    Settings,
    host_name,
    is_allowed,
    is_allowed_address,
    is_public,
    port_number,
)

SCHEMES = ("http://", "https://", "s3://")  # by which a reference to another machine is known
MAX_REDIRECTS = 3  # redirections that are followed
HTTP_TIMEOUT = httpx.Timeout(30, connect=10)  # seconds for the next bytes
MAX_DOWNLOAD_SECONDS = 3600  # for a raster
MIN_BYTES_PER_SECOND = 10_000  # over each of the following times
RATE_WINDOW_SECONDS = 30
CALLBACK_TIMEOUT_SECONDS = 10  # for a note
POLL_INTERVAL_SECONDS = 0.2  # between two looks whether a fetch is still wanted
_COPY_SCRIPT = """
import resource, sys
import rasterio.shutil
source, target, largest = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest), int(largest)))
rasterio.shutil.copyfiles(source, target)
"""
Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)


def fetch(url: str, folder: Path, settings: Settings, check_wanted: Callable[[], object] = lambda: None) -> Path:
    """Fetch a raster into a folder.

    Args:
        url: http, https or s3.
        folder: which is made where it is missing.
        settings: of the agency.
        check_wanted: a function that is called several times a second; what it raises ends the fetch.

    Returns:
        The file, under the last part of its origin's name; it is there whole, or not at all.

    Raises:
        ForbiddenError: the place is not allowed.
        SourceError: it gives nothing, or too slowly, or what it gives is no GeoTIFF or too large.
        OutputError: the file cannot be written.
    """
    check_reference(url, settings)
    path = folder.resolve() / _file_name(url)
    with atomic_replace(path) as scratch:
        progress = _TransferProgress(without_secrets(url), settings.upload_bytes)

        def watch() -> None:
            check_wanted()
            progress.check()

        if url.startswith(S3_SCHEME):
            _copy_s3_object(url, scratch, progress, watch)
        else:
            _run_watched(_download(check_url(url, settings), scratch, settings, progress), watch)
        raster_paths.check_file(scratch, scratch.parent, path.name)
    return path


def check_reference(url: str, settings: Settings) -> None:
    """Check that the agency allows a reference to another machine.

    Nothing is requested yet.

    Raises:
        ForbiddenError: the agency does not allow it.
    """
    if not url.startswith(S3_SCHEME):
        check_url(url, settings)
        return
    bucket, _, key = url.removeprefix(S3_SCHEME).partition("/")
    named = BUCKET_PATTERN.fullmatch(bucket) and key.isprintable() and not {*key} & {*"\\?#"}
    if not named or any(part in ("", ".", "..") for part in key.split("/")):
        raise ForbiddenError(f"{without_secrets(url)}: no object of S3; expected s3://BUCKET_PATTERN/KEY")
    if f"{S3_SCHEME}{bucket}" not in settings.allowed:
        raise ForbiddenError(
            f"s3://{bucket}: not among the buckets that this service reads; its operator can allow it "
            f"({ENV_PREFIX}ALLOWED)"
        )


def notify(url: str, document: Mapping[str, object], settings: Settings) -> None:
    """Post a JSON document to an allowed location; a failure is only logged."""

    async def post() -> None:
        async with (
            asyncio.timeout(CALLBACK_TIMEOUT_SECONDS),
            _send_request("POST", check_url(url, settings), settings, document) as said,
        ):
            if not said.is_success:
                _LOG.warning("%s answered %d to a callback", said.request.headers["Host"], said.status_code)

    try:
        asyncio.run(post())
    except TimeoutError:
        _LOG.warning("a callback was not delivered: no answer within %d s", CALLBACK_TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        _LOG.warning("a callback was not delivered: %s", type(error).__name__)
    except TaludError as error:
        _LOG.warning("a callback was not delivered: %s", error)


def check_url(url: str, settings: Settings) -> httpx.URL:
    """Return a web address after checking that the agency allows it.

    Its name is not resolved yet.

    Raises:
        ForbiddenError: the agency does not allow it.
    """
    shown = without_secrets(url)
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ForbiddenError(f"{shown}: not a web address; expected https://HOST/PATH") from error
    if parsed.scheme not in DEFAULT_PORTS or not parsed.host:
        raise ForbiddenError(f"{shown}: not a web address; expected https://HOST/PATH")
    if parsed.userinfo:
        raise ForbiddenError(f"{parsed.host}: an address must not contain a name or password")
    if not is_allowed(settings.allowed, parsed):
        standard = port_number(parsed) == DEFAULT_PORTS[parsed.scheme]
        place = host_name(parsed) + ("" if standard else f":{port_number(parsed)}")
        raise ForbiddenError(
            f"{place}: not among the places that this service fetches from; its operator can allow it "
            f"({ENV_PREFIX}ALLOWED)"
        )
    return parsed


def without_secrets(url: str) -> str:
    """Return an address without its query and password.

    The query may hold a signature. The text need not be a valid address.
    """
    plain = re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", url, count=1)
    shown = re.split(r"[?#]", plain, maxsplit=1)[0][:200]
    return shown if shown.isprintable() and shown.isascii() else f"{shown!a}"


@dataclass
class _TransferProgress:
    """The progress of a download, and its minimum speed.

    Attributes:
        name: of the raster, in messages.
        max_bytes: bytes that are fetched.
        received: bytes until now.
    """

    name: str
    max_bytes: int
    received: int = 0
    _began: float = field(default_factory=time.monotonic)
    _since: float = field(default_factory=time.monotonic)
    _before: int = 0

    def receive(self, total: int) -> None:
        """Store the total number of bytes received.

        Raises:
            SourceError: these are too many.
        """
        self.received = total
        if total > self.max_bytes:
            raise SourceError(f"{self.name}: larger than {self.max_bytes:,} bytes, the limit for fetched rasters")

    def check(self) -> None:
        """Check that the raster arrives fast enough.

        Raises:
            SourceError: it does not.
        """
        moment = time.monotonic()
        if moment - self._began > MAX_DOWNLOAD_SECONDS:
            raise SourceError(f"{self.name}: took longer than {MAX_DOWNLOAD_SECONDS} s")
        if moment - self._since >= RATE_WINDOW_SECONDS:
            if self.received - self._before < MIN_BYTES_PER_SECOND * (moment - self._since):
                raise SourceError(
                    f"{self.name}: comes too slowly, with less than {MIN_BYTES_PER_SECOND:,} bytes per second over "
                    f"{RATE_WINDOW_SECONDS} s; upload the raster instead"
                )
            self._since, self._before = moment, self.received


def _run_watched(work: Coroutine[Any, Any, Result], check: Callable[[], object]) -> Result:
    """Return the result of a coroutine, calling `check` regularly meanwhile.

    An exception of `check` cancels the coroutine.
    """

    async def watched() -> Result:
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=POLL_INTERVAL_SECONDS)
                check()
        finally:
            if task.cancel():
                await asyncio.wait({task})
        return task.result()

    return asyncio.run(watched())


async def _resolve_host(url: httpx.URL, settings: Settings) -> list[str]:
    """Return the addresses of a host after checking that they are public.

    An address that the allow-list names with its port need not be public.

    Raises:
        SourceError: there are none, or one is not public.
    """
    host = url.raw_host.decode("ascii")
    if is_allowed_address(settings.allowed, url):
        return [host]

    def look_up() -> list[str]:
        found = socket.getaddrinfo(host, port_number(url), type=socket.SOCK_STREAM)
        return list(dict.fromkeys(str(place[0]) for *_, place in found))

    try:
        addresses = await anyio.to_thread.run_sync(look_up, abandon_on_cancel=True)
    except (OSError, UnicodeError) as error:
        raise SourceError(f"{host}: no such host") from error
    if not addresses or not all(map(is_public, addresses)):
        raise SourceError(f"{host}: not a public address; the agency's own ones are allowed by address and port alone")
    return addresses


@asynccontextmanager
async def _send_request(
    method: str, url: httpx.URL, settings: Settings, json: Mapping[str, object] | None = None
) -> AsyncIterator[httpx.Response]:
    """Send a request to a host without reading the body of the answer.

    The connection goes to an address that was judged, and TLS is for the host's name; no proxy, cookie or password of
    this machine takes part.

    Raises:
        SourceError: the host has no public address.
        httpx.HTTPError: it does not answer.
    """
    host = url.raw_host.decode("ascii")
    addresses = await _resolve_host(url, settings)
    headers = {"Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", "User-Agent": "talud"}
    async with httpx.AsyncClient(verify=httpx.create_ssl_context(), trust_env=False, timeout=HTTP_TIMEOUT) as client:
        for address in addresses:
            request = client.build_request(
                method, url.copy_with(host=address), headers=headers, json=json, extensions={"sni_hostname": host}
            )
            try:
                response = await client.send(request, stream=True)
            except httpx.ConnectError:
                if address == addresses[-1]:
                    raise
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return


async def _download(url: httpx.URL, target: Path, settings: Settings, progress: _TransferProgress) -> None:
    """Download a file; redirections must pass the same checks as the address."""
    for _ in range(MAX_REDIRECTS + 1):
        name = without_secrets(str(url))
        try:
            async with _send_request("GET", url, settings) as response:
                if response.has_redirect_location:
                    url = _redirect_target(url, response.headers["Location"], settings)
                    continue
                if response.status_code != httpx.codes.OK:
                    raise SourceError(f"{name}: the host answers {response.status_code}")
                with target.open("wb") as file:
                    async for part in response.aiter_raw():  # as they come: a larger part would keep a slow host unseen
                        progress.receive(progress.received + len(part))
                        file.write(part)
                return
        except httpx.InvalidURL as error:
            raise SourceError(f"{name}: redirects to an invalid address") from error
        except httpx.HTTPError as error:
            raise SourceError(f"{name}: cannot be fetched: {type(error).__name__}") from error
    raise SourceError(
        f"{without_secrets(str(url))}: leads on and on; at most {MAX_REDIRECTS} redirections are followed"
    )


def _redirect_target(url: httpx.URL, location: str, settings: Settings) -> httpx.URL:
    """Return the address to which an answer redirects.

    Raises:
        ForbiddenError: that place is not allowed.
    """
    onward = str(url.join(location))
    try:
        return check_url(onward, settings)
    except ForbiddenError as error:
        raise ForbiddenError(f"{without_secrets(str(url))}: redirects to another location: {error}") from error


def _copy_s3_object(url: str, target: Path, progress: _TransferProgress, check: Callable[[], object]) -> None:
    """Copy an object of S3 in a process that can write no larger file."""
    source = f"/vsis3/{url.removeprefix(S3_SCHEME)}"
    options = {"CPL_VSIL_CURL_ALLOWED_FILENAME": source, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    command = [sys.executable, "-c", _COPY_SCRIPT, source, str(target), str(progress.max_bytes + 1)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=NETWORK_TIMEOUTS | dict(os.environ) | options, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(POLL_INTERVAL_SECONDS)
                if target.exists():
                    progress.receive(target.stat().st_size)
                check()
        finally:
            process.kill()
            process.wait()
        if target.exists():  # GDAL may not notice that it was stopped
            progress.receive(target.stat().st_size)
        if process.returncode:
            said.seek(0)
            reason = said.read().decode(errors="replace").strip().rpartition("\n")[2]
            _LOG.warning("%s: %s", url, re.sub(r"\?\S*", "?…", reason))  # a query may hold a signature
            raise SourceError(f"{url}: no raster, or not for this service's credentials")


def _file_name(url: str) -> str:
    """Return a safe file name from the last part of an address, ending in .tif."""
    try:
        path = httpx.URL(url).path
    except (httpx.InvalidURL, UnicodeError):  # which is told of when it is judged
        path = ""
    stem = re.sub(r"(?i)\.tiff?$", "", path.rpartition("/")[2])
    plain = re.sub(r"[^\w-]+", "_", stem)[:80].strip("_")
    return f"{plain or 'raster'}.tif"
