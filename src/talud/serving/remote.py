"""Downloads and callbacks, restricted to allowed locations.

A connection goes to the same IP address that was checked, which prevents DNS rebinding. The allow-list is part of the
settings. A download stops within seconds after its cancellation, whatever the remote host does.
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

SCHEMES = ("http://", "https://", "s3://")  # prefixes of references to remote rasters
MAX_REDIRECTS = 3
HTTP_TIMEOUT = httpx.Timeout(30, connect=10)  # seconds
MAX_DOWNLOAD_SECONDS = 3600
MIN_BYTES_PER_SECOND = 10_000  # on average over each window of RATE_WINDOW_SECONDS
RATE_WINDOW_SECONDS = 30
CALLBACK_TIMEOUT_SECONDS = 10
POLL_INTERVAL_SECONDS = 0.2  # between two checks for the cancellation of a download
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
    """Download a raster into a folder.

    Args:
        url: http, https or s3 URL of the raster.
        folder: output folder, which is created if it is missing.
        settings: settings of the service.
        check_wanted: function that is called several times a second; an exception of it cancels the download.

    Returns:
        The path of the complete file, named after the last part of the URL.

    Raises:
        ForbiddenError: the location is not on the allow-list.
        SourceError: the download fails, is too slow or too large, or the file is not a GeoTIFF.
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
    """Check that a remote raster is on the allow-list.

    Nothing is requested from the host.

    Raises:
        ForbiddenError: the URL is invalid or not on the allow-list.
    """
    if not url.startswith(S3_SCHEME):
        check_url(url, settings)
        return
    bucket, _, key = url.removeprefix(S3_SCHEME).partition("/")
    named = BUCKET_PATTERN.fullmatch(bucket) and key.isprintable() and not {*key} & {*"\\?#"}
    if not named or any(part in ("", ".", "..") for part in key.split("/")):
        raise ForbiddenError(f"{without_secrets(url)}: is not the URL of an S3 object; expected s3://BUCKET/KEY")
    if f"{S3_SCHEME}{bucket}" not in settings.allowed:
        raise ForbiddenError(
            f"s3://{bucket}: is not on the allow-list of this service; its operator can add it ({ENV_PREFIX}ALLOWED)"
        )


def notify(url: str, document: Mapping[str, object], settings: Settings) -> None:
    """Post a JSON document to a callback URL.

    Failures are only logged.
    """

    async def post() -> None:
        async with (
            asyncio.timeout(CALLBACK_TIMEOUT_SECONDS),
            _send_request("POST", check_url(url, settings), settings, document) as response,
        ):
            if not response.is_success:
                _LOG.warning("callback failed: %s answered %d", response.request.headers["Host"], response.status_code)

    try:
        asyncio.run(post())
    except TimeoutError:
        _LOG.warning("callback failed: no response within %d s", CALLBACK_TIMEOUT_SECONDS)
    except httpx.HTTPError as error:
        _LOG.warning("callback failed: %s", type(error).__name__)
    except TaludError as error:
        _LOG.warning("callback failed: %s", error)


def check_url(url: str, settings: Settings) -> httpx.URL:
    """Parse a web URL and check that it is on the allow-list.

    The host name is not resolved yet.

    Raises:
        ForbiddenError: the URL is invalid or not on the allow-list.
    """
    shown = without_secrets(url)
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ForbiddenError(f"{shown}: is not a web URL; expected https://HOST/PATH") from error
    if parsed.scheme not in DEFAULT_PORTS or not parsed.host:
        raise ForbiddenError(f"{shown}: is not a web URL; expected https://HOST/PATH")
    if parsed.userinfo:
        raise ForbiddenError(f"{parsed.host}: the URL must not contain a user name or password")
    if not is_allowed(settings.allowed, parsed):
        standard = port_number(parsed) == DEFAULT_PORTS[parsed.scheme]
        place = host_name(parsed) + ("" if standard else f":{port_number(parsed)}")
        raise ForbiddenError(
            f"{place}: is not on the allow-list of this service; its operator can add it ({ENV_PREFIX}ALLOWED)"
        )
    return parsed


def without_secrets(url: str) -> str:
    """Return a URL without its query, user name and password.

    The query may contain a signature. The text need not be a valid URL.
    """
    plain = re.sub(r"^([^/?#]*//)[^/?#]*@", r"\1", url, count=1)
    shown = re.split(r"[?#]", plain, maxsplit=1)[0][:200]
    return shown if shown.isprintable() and shown.isascii() else f"{shown!a}"


@dataclass
class _TransferProgress:
    """Progress of a download, with limits of size, speed and duration.

    Attributes:
        name: name of the raster in error messages.
        max_bytes: largest size in bytes.
        received: number of bytes received so far.
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
            SourceError: the raster is too large.
        """
        self.received = total
        if total > self.max_bytes:
            raise SourceError(f"{self.name}: is larger than {self.max_bytes:,} bytes, the limit for downloaded rasters")

    def check(self) -> None:
        """Check the speed and the duration of the download.

        Raises:
            SourceError: the download is too slow.
        """
        moment = time.monotonic()
        if moment - self._began > MAX_DOWNLOAD_SECONDS:
            raise SourceError(f"{self.name}: the download took longer than {MAX_DOWNLOAD_SECONDS} s")
        if moment - self._since >= RATE_WINDOW_SECONDS:
            if self.received - self._before < MIN_BYTES_PER_SECOND * (moment - self._since):
                raise SourceError(
                    f"{self.name}: the download is too slow, with less than {MIN_BYTES_PER_SECOND:,} bytes per second "
                    f"over {RATE_WINDOW_SECONDS} s; upload the raster instead"
                )
            self._since, self._before = moment, self.received


def _run_watched(work: Coroutine[Any, Any, Result], check: Callable[[], object]) -> Result:
    """Run a coroutine, and call `check` regularly.

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
    """Resolve a host and check that all its addresses are public.

    An IP address that is on the allow-list with its port may be private.

    Raises:
        SourceError: the host is unknown, or an address is not public.
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
        raise SourceError(f"{host}: is not a public address; private hosts are allowed only by address and port")
    return addresses


@asynccontextmanager
async def _send_request(
    method: str, url: httpx.URL, settings: Settings, json: Mapping[str, object] | None = None
) -> AsyncIterator[httpx.Response]:
    """Send a request, and yield the response without its body.

    The connection goes to an address that was checked, and TLS verifies the host's name. Proxies, cookies and passwords
    of this machine are not used.

    Raises:
        SourceError: the host has no public address.
        httpx.HTTPError: the host does not answer.
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
    """Download a file; each redirect passes the same checks as the URL."""
    for _ in range(MAX_REDIRECTS + 1):
        name = without_secrets(str(url))
        try:
            async with _send_request("GET", url, settings) as response:
                if response.has_redirect_location:
                    url = _redirect_target(url, response.headers["Location"], settings)
                    continue
                if response.status_code != httpx.codes.OK:
                    raise SourceError(f"{name}: the host answered with status {response.status_code}")
                with target.open("wb") as file:
                    async for part in response.aiter_raw():  # small parts, so that a slow host is noticed
                        progress.receive(progress.received + len(part))
                        file.write(part)
                return
        except httpx.InvalidURL as error:
            raise SourceError(f"{name}: redirects to an invalid URL") from error
        except httpx.HTTPError as error:
            raise SourceError(f"{name}: cannot be downloaded: {type(error).__name__}") from error
    raise SourceError(f"{without_secrets(str(url))}: too many redirects; the limit is {MAX_REDIRECTS}")


def _redirect_target(url: httpx.URL, location: str, settings: Settings) -> httpx.URL:
    """Return the URL to which a response redirects.

    Raises:
        ForbiddenError: the URL is not on the allow-list.
    """
    onward = str(url.join(location))
    try:
        return check_url(onward, settings)
    except ForbiddenError as error:
        raise ForbiddenError(f"{without_secrets(str(url))}: redirects to another location: {error}") from error


def _copy_s3_object(url: str, target: Path, progress: _TransferProgress, check: Callable[[], object]) -> None:
    """Copy an S3 object in a process whose file size is limited."""
    source = f"/vsis3/{url.removeprefix(S3_SCHEME)}"
    options = {"CPL_VSIL_CURL_ALLOWED_FILENAME": source, "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    command = [sys.executable, "-c", _COPY_SCRIPT, source, str(target), str(progress.max_bytes + 1)]
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command, env=NETWORK_TIMEOUTS | dict(os.environ) | options, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=stderr,
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
        if target.exists():  # GDAL may ignore the limit of the file size
            progress.receive(target.stat().st_size)
        if process.returncode:
            stderr.seek(0)
            reason = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
            _LOG.warning("%s: %s", url, re.sub(r"\?\S*", "?…", reason))  # a query may contain a signature
            raise SourceError(f"{url}: is not a raster, or this service has no access to it")


def _file_name(url: str) -> str:
    """Return a safe file name for a URL, ending in .tif."""
    try:
        path = httpx.URL(url).path
    except (httpx.InvalidURL, UnicodeError):  # `check_url` reports it
        path = ""
    stem = re.sub(r"(?i)\.tiff?$", "", path.rpartition("/")[2])
    plain = re.sub(r"[^\w-]+", "_", stem)[:80].strip("_")
    return f"{plain or 'raster'}.tif"
