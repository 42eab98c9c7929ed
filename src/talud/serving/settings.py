"""Settings of the service, with the allow-list of remote locations.

They are environment variables with the prefix `TALUD_SERVICE_`. In the allow-list, `data.example.org` is a host at the
default ports, `data.example.org:8443` a host at another port, and `s3://bucket` a bucket. All addresses of a host name
must be public. An address of a private network is listed with its port: `10.1.2.3:8080`, `[fd00::2]:8080`.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import httpx
from pydantic import Field, FiniteFloat, IPvAnyNetwork, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from talud.errors import ParamsError
from talud.project import find_root

ENV_PREFIX = "TALUD_SERVICE_"
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """Settings of the service; paths are relative to the working folder."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    data: Annotated[
        Path, Field(description="folder of the rasters that may be mapped; default: stacks/ of the project")
    ]
    results: Annotated[
        Path, Field(description="folder of maps, uploads and the database; default: .talud/service/ of the project")
    ]
    database: Annotated[
        str, Field(description="SQLAlchemy URL, such as postgresql+psycopg://…; default: an SQLite file in results")
    ] = ""
    workers: Annotated[
        Annotated[int, Field(ge=1)] | str,
        Field(
            union_mode="left_to_right",  # values of environment variables are text
            description="number of worker processes on this machine, or the address of a Dask scheduler",
        ),
    ] = 1
    keys_required: Annotated[
        bool | None, Field(description="whether clients need an API key; default: yes, unless the host is loopback")
    ] = None
    public_url: Annotated[
        str,
        Field(
            pattern=r"^(https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~/\-]*)?)?$",
            description="public address of the service, such as https://maps.example.org; default: links "
            "are relative where keys are required",
        ),
    ] = ""
    proxies: Annotated[
        tuple[IPvAnyNetwork, ...],
        Field(description="addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto are trusted, as JSON"),
    ] = ()
    log: Annotated[
        Literal["text", "json"], Field(description="format of the log: text, or json for one object per line")
    ] = "text"
    allowed: Annotated[
        tuple[str, ...],
        Field(
            description='hosts and buckets from which rasters may be downloaded, as JSON: ["data.example.org", "s3://bucket"]'
        ),
    ] = ()
    upload_bytes: Annotated[int, Field(gt=0, description="largest upload or downloaded raster, in bytes")] = 4 * 10**9
    upload_bytes_per_key: Annotated[
        int, Field(gt=0, description="largest total size of the uploads of one key, in bytes")
    ] = 40 * 10**9
    pixels: Annotated[int, Field(gt=0, description="largest raster that can be mapped, in pixels")] = 2 * 10**9
    sync_pixels: Annotated[int, Field(ge=0, description="largest raster for a synchronous request, in pixels")] = (
        1024 * 1024
    )
    jobs_per_key: Annotated[int, Field(gt=0, description="largest number of unfinished jobs of one key")] = 20
    queue: Annotated[int, Field(gt=0, description="largest number of unfinished jobs of all keys")] = 200
    results_days: Annotated[
        FiniteFloat, Field(gt=0, le=36_500, description="days for which maps and uploads are kept")
    ] = 90
    results_bytes: Annotated[int, Field(gt=0, description="largest total size of maps and uploads, in bytes")] = (
        200 * 10**9
    )

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, value: int | str) -> int | str:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(?:tcp|tls|wss?)://(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):([0-9]{1,5})/?", value)
        if found and 0 < int(found[1]) < 65536:
            return value
        raise ValueError(
            f"{value[:100]!r} is neither a number of processes, at least 1, nor the address of a Dask scheduler, such "
            "as tls://scheduler:8786"
        )

    @field_validator("allowed")
    @classmethod
    def _check_allowed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(parse_allowed_entry(each) for each in value)

    @field_validator("database")
    @classmethod
    def _check_database(cls, value: str) -> str:
        """Check the URL of the database.

        Error messages never contain its password.
        """
        try:
            url = make_url(value or "sqlite:///service.db")
        except (SQLAlchemyError, ValueError) as error:
            raise ValueError(f"is not a URL; {_EXPECTED_DATABASE}") from error
        if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise ValueError(f"{url.drivername} is not a supported database; {_EXPECTED_DATABASE}")
        in_memory = url.get_backend_name() == "sqlite" and (
            not url.database or ":memory:" in url.database or url.database.startswith("file:")
        )
        if in_memory:
            raise ValueError("the database would be lost when the service ends; give a file: sqlite:////srv/service.db")
        return value

    @model_validator(mode="before")
    @classmethod
    def _add_project_folders(cls, given: dict[str, object]) -> dict[str, object]:
        root = find_root(Path.cwd())
        if root is None:
            return given
        return {"data": root / "stacks", "results": root / ".talud" / "service"} | given

    @classmethod
    def load(cls) -> Settings:
        """Read the settings from the environment.

        Raises:
            ParamsError: a setting is missing, unknown or invalid.
        """
        # HOST and PORT: Kubernetes sets them for a service named talud.
        known = {f"{ENV_PREFIX}{name.upper()}" for name in cls.model_fields}
        if unknown := sorted(
            name
            for name in os.environ
            if name.startswith(ENV_PREFIX)
            and name not in known
            and not re.match("(HOST|PORT)", name.removeprefix(ENV_PREFIX))
        ):
            raise ParamsError(f"{unknown[0]}: unknown setting; the settings are {', '.join(sorted(known))}")
        try:
            settings = cls()
        except SettingsError as error:  # a list that is not valid JSON
            named = re.search('field "([a-z_]+)"', str(error))
            name = named[1].upper() if named else "ALLOWED"
            raise ParamsError(
                f'{ENV_PREFIX}{name}: is not valid JSON; set a list such as ["data.example.org"]'
            ) from error
        except ValidationError as error:
            raise ParamsError(_first_error(error)) from error
        if os.environ.get("FORWARDED_ALLOW_IPS") and not settings.proxies:
            raise ParamsError(
                "FORWARDED_ALLOW_IPS: is no longer used; give the addresses of the proxies, such as "
                f"{ENV_PREFIX}PROXIES='[\"127.0.0.1\"]'"
            )
        settings._check_folders()
        return settings

    def _check_folders(self) -> None:
        """Check that the data and results folders do not overlap.

        Raises:
            ParamsError: the data folder is missing, or the folders overlap.
        """
        if not self.data.is_dir():
            raise ParamsError(f"{self.data}: no such folder; set {ENV_PREFIX}DATA to the folder of the rasters")
        data, results = self.data.resolve(), self.results.resolve()
        below = results.relative_to(data).parts if results.is_relative_to(data) else None
        # Clients cannot access hidden folders.
        if below is not None and not any(part.startswith(".") for part in below):
            raise ParamsError(
                f"{self.results}: is inside the folder of the rasters, {self.data}, so that maps would be listed as "
                f"rasters; set {ENV_PREFIX}RESULTS to a folder outside"
            )
        own = [results / name for name in ("jobs", "uploads", "workers") if data.is_relative_to(results / name)]
        if own:
            raise ParamsError(
                f"{self.data}: is inside {own[0]}, where the service deletes files; set {ENV_PREFIX}DATA to a folder "
                "outside"
            )

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the database."""
        return self.database or f"sqlite:///{(self.results.absolute() / 'service.db').as_posix()}"

    def remove_folders(self, message: str) -> str:
        """Return a message without the paths of the service's folders."""
        for folder in (self.results, self.data):
            message = message.replace(f"{folder.absolute()}/", "")
        return message

    def open_to_all(self, host: str) -> bool:
        """Return whether clients at a host need no key.

        Raises:
            ParamsError: keys are switched off, and the host is reachable from other machines.
        """
        if self.keys_required is False and host not in LOOPBACK_HOSTS:
            raise ParamsError(
                f"{ENV_PREFIX}KEYS_REQUIRED is false, but other machines can reach {host}; listen at 127.0.0.1, or "
                "require keys"
            )
        return host in LOOPBACK_HOSTS if self.keys_required is None else not self.keys_required


_EXPECTED_DATABASE = "expected sqlite:////FOLDER/FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


def _first_error(error: ValidationError) -> str:
    """Return a one-line message about the first invalid setting."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    message = first["msg"].removeprefix("Value error, ")
    advice = "; set it, or start the service inside a project" if first["type"] == "missing" else ""
    return f"{ENV_PREFIX}{field.upper()}: {message}{advice}"


S3_SCHEME = "s3://"
DEFAULT_PORTS = {"http": 80, "https": 443}
BUCKET_PATTERN = re.compile("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"({_HOST_LABEL}\.)+(?!\d+$){_HOST_LABEL}")
NON_PUBLIC_NETWORKS = tuple(  # IPv6 networks that embed IPv4 (mapped, NAT64, 6to4, Teredo), and site-local ones
    ipaddress.ip_network(network)
    for network in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10")
)


def parse_allowed_entry(text: str) -> str:
    """Normalise an entry of the allow-list for `is_allowed`.

    Raises:
        ValueError: no URL can match the entry; the message contains the expected form.
    """
    if text.casefold().startswith(S3_SCHEME):
        return _check_bucket(text)
    if "://" in text or any(sign in text for sign in "/?#@*\\") or text != text.strip():
        raise ValueError(f"{_quoted(text)} is not a host; {_suggestion(text)}")
    try:
        parsed = httpx.URL(f"https://{text}")
        host = host_name(parsed)
    except (httpx.InvalidURL, UnicodeError):
        host = ""
    port = re.fullmatch(r".*?(?::(\d+))?", text, re.DOTALL)
    stated = int(port[1]) if port and port[1] and not text.endswith("]") else None
    if not host or text.endswith(":") or (stated is not None and not 0 < stated < 65536):
        raise ValueError(f"{_quoted(text)} is not a host with an optional port from 1 to 65535; {_EXPECTED_ENTRY}")
    if is_ip_address(host.strip("[]")):
        if stated is None and not is_public(host.strip("[]")):
            raise ValueError(f"{_quoted(text)} is an address of a private network; add its port: {host}:8080")
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError(
            f"{_quoted(text)} is not a public host name; {_EXPECTED_ENTRY}; give a host of a private network "
            'by address and port, such as "10.1.2.3:8080"'
        )
    return host if stated is None else f"{host}:{stated}"


def is_allowed(allowed: Iterable[str], url: httpx.URL) -> bool:
    """Check if the allow-list contains a URL's host and port."""
    host = host_name(url)
    names = {f"{host}:{port_number(url)}"} | ({host} if port_number(url) == DEFAULT_PORTS[url.scheme] else set())
    return not names.isdisjoint(allowed)


def is_allowed_address(allowed: Iterable[str], url: httpx.URL) -> bool:
    """Check if the allow-list contains a URL's IP address.

    Such an address may be private.
    """
    return is_ip_address(url.raw_host.decode("ascii")) and f"{host_name(url)}:{port_number(url)}" in allowed


def host_name(url: httpx.URL) -> str:
    """Return the host of a URL in normal form.

    The host is in lower case, and an IPv6 address in brackets.
    """
    host = url.raw_host.decode("ascii").lower()
    return f"[{host}]" if ":" in host else host


def port_number(url: httpx.URL) -> int:
    """Return the port of a URL, or the default port of its scheme."""
    return url.port or DEFAULT_PORTS[url.scheme]


def is_ip_address(host: str) -> bool:
    """Check if a host is an IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_public(address: str) -> bool:
    """Check if an IP address is public.

    Addresses that embed another address are not public.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a link-local address with its zone
        return False
    special = ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback or ip.is_link_local
    return ip.is_global and not special and not any(ip in network for network in NON_PUBLIC_NETWORKS)


_EXPECTED_ENTRY = 'expected "data.example.org", "data.example.org:8443" or "s3://bucket"'


def _check_bucket(text: str) -> str:
    name = text[len(S3_SCHEME) :]
    if not (text.startswith(S3_SCHEME) and BUCKET_PATTERN.fullmatch(name)):
        first = name.split("/")[0].lower()
        instead = f'give only the bucket: "{S3_SCHEME}{first}"' if BUCKET_PATTERN.fullmatch(first) else _EXPECTED_ENTRY
        raise ValueError(f"{_quoted(text)} is not an S3 bucket; {instead}")
    return text


def _suggestion(text: str) -> str:
    """Return a suggestion for an invalid entry, from the host in it."""
    found = re.fullmatch(
        r"\s*(?:https?://)?([\w-]+(?:\.[\w-]+)+(?::\d+)?)(?:[/?#].*)?\s*", text, re.DOTALL | re.IGNORECASE
    )
    return f'give only the host: "{found[1]}"' if found else _EXPECTED_ENTRY


def _quoted(text: str) -> str:
    return f"{text[:100]!a}"
