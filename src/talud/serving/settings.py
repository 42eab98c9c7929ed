"""Settings of the service, with the allow-list of remote locations.

The environment holds them, each name after `TALUD_SERVICE_`. In the allow-list, `data.example.org` names a host at the
usual ports, `data.example.org:8443` one at that port, `s3://bucket` a bucket. A name must lead to public addresses, all
of them. An address of the agency's own network is named with its port: `10.1.2.3:8080`, `[fd00::2]:8080`.
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
    """The service's settings; relative paths are those of the working folder."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    data: Annotated[
        Path, Field(description="folder of the rasters that may be mapped; default: stacks/ of the project around")
    ]
    results: Annotated[
        Path, Field(description="folder of maps, uploads and the database; default: .talud/service/ of the project")
    ]
    database: Annotated[
        str, Field(description="SQLAlchemy URL, such as postgresql+psycopg://…; default: a SQLite file in results")
    ] = ""
    workers: Annotated[
        Annotated[int, Field(ge=1)] | str,
        Field(
            union_mode="left_to_right",  # the environment knows no numbers
            description="processes of this machine that map, or the address of a Dask scheduler",
        ),
    ] = 1
    keys_required: Annotated[
        bool | None, Field(description="whether a client needs an API key; default: unless bound to loopback")
    ] = None
    public_url: Annotated[
        str,
        Field(
            pattern=r"^(https?://[A-Za-z0-9.\-\[\]:]+(/[A-Za-z0-9._~/\-]*)?)?$",
            description="address by which clients reach the service, such as https://maps.example.org; default: links "
            "are relative where keys are required",
        ),
    ] = ""
    proxies: Annotated[
        tuple[IPvAnyNetwork, ...],
        Field(description="addresses of proxies whose X-Forwarded-For and X-Forwarded-Proto count, as JSON"),
    ] = ()
    log: Annotated[Literal["text", "json"], Field(description="lines of the log: text, or a JSON object each")] = "text"
    allowed: Annotated[
        tuple[str, ...],
        Field(description='where rasters may be fetched from, as JSON: ["data.example.org", "s3://bucket"]'),
    ] = ()
    upload_bytes: Annotated[int, Field(gt=0, description="largest upload, or fetched raster, in bytes")] = 4 * 10**9
    upload_bytes_per_key: Annotated[int, Field(gt=0, description="what the uploads of one key may take, in bytes")] = (
        40 * 10**9
    )
    pixels: Annotated[int, Field(gt=0, description="largest raster that is mapped, in pixels")] = 2 * 10**9
    sync_pixels: Annotated[int, Field(ge=0, description="largest raster that a client may wait for, in pixels")] = (
        1024 * 1024
    )
    jobs_per_key: Annotated[int, Field(gt=0, description="jobs of one key that wait or run")] = 20
    queue: Annotated[int, Field(gt=0, description="jobs that wait or run, in all")] = 200
    results_days: Annotated[
        FiniteFloat, Field(gt=0, le=36_500, description="how long maps and uploads are kept, in days")
    ] = 90
    results_bytes: Annotated[int, Field(gt=0, description="what maps and uploads may take, in bytes")] = 200 * 10**9

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

        Messages never contain its password.
        """
        try:
            url = make_url(value or "sqlite:///service.db")
        except (SQLAlchemyError, ValueError) as error:
            raise ValueError(f"is no URL; {_EXPECTED_DATABASE}") from error
        if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise ValueError(f"{url.drivername} is no database that the service can use; {_EXPECTED_DATABASE}")
        in_memory = url.get_backend_name() == "sqlite" and (
            not url.database or ":memory:" in url.database or url.database.startswith("file:")
        )
        if in_memory:
            raise ValueError("the database would be lost when the service ends; name a file: sqlite:////srv/service.db")
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
            ParamsError: one is missing or makes no sense.
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
            raise ParamsError(f"{unknown[0]}: there is no such setting; there are {', '.join(sorted(known))}")
        try:
            settings = cls()
        except SettingsError as error:  # of a setting that is a list
            named = re.search('field "([a-z_]+)"', str(error))
            name = named[1].upper() if named else "ALLOWED"
            raise ParamsError(f'{ENV_PREFIX}{name}: is no JSON; set a list such as ["data.example.org"]') from error
        except ValidationError as error:
            raise ParamsError(_first_error(error)) from error
        if os.environ.get("FORWARDED_ALLOW_IPS") and not settings.proxies:
            raise ParamsError(
                "FORWARDED_ALLOW_IPS: is not read any more; name the proxies by their addresses, such as "
                f"{ENV_PREFIX}PROXIES='[\"127.0.0.1\"]'"
            )
        settings._check_folders()
        return settings

    def _check_folders(self) -> None:
        """Check that the folder of rasters exists, and that of results is separate.

        Raises:
            ParamsError: the folder of rasters is missing, or the folders overlap.
        """
        if not self.data.is_dir():
            raise ParamsError(f"{self.data}: no such folder; {ENV_PREFIX}DATA names the folder of the rasters")
        data, results = self.data.resolve(), self.results.resolve()
        below = results.relative_to(data).parts if results.is_relative_to(data) else None
        if below is not None and not any(part.startswith(".") for part in below):  # hidden folders are no client's
            raise ParamsError(
                f"{self.results}: lies in the folder of the rasters, {self.data}, so that maps would be rasters to "
                f"map; name a folder outside by {ENV_PREFIX}RESULTS_RELATION"
            )
        own = [results / name for name in ("jobs", "uploads", "workers") if data.is_relative_to(results / name)]
        if own:
            raise ParamsError(
                f"{self.data}: lies in {own[0]}, which the service cleans up; name a folder outside by {ENV_PREFIX}DATA"
            )

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL of the database."""
        return self.database or f"sqlite:///{(self.results.absolute() / 'service.db').as_posix()}"

    def remove_folders(self, message: str) -> str:
        """Return a message without the locations of the service's folders."""
        for folder in (self.results, self.data):
            message = message.replace(f"{folder.absolute()}/", "")
        return message

    def open_to_all(self, host: str) -> bool:
        """Check whether clients need no key if the service listens at a host.

        Raises:
            ParamsError: keys are switched off and others can reach the host.
        """
        if self.keys_required is False and host not in LOOPBACK_HOSTS:
            raise ParamsError(
                f"{ENV_PREFIX}KEYS_REQUIRED is false, but {host} can be reached by others; listen at 127.0.0.1, or "
                "leave the keys on"
            )
        return host in LOOPBACK_HOSTS if self.keys_required is None else not self.keys_required


_EXPECTED_DATABASE = "expected sqlite:////FOLDER/FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


def _first_error(error: ValidationError) -> str:
    """Return the first fault of the settings in one line."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    said = first["msg"].removeprefix("Value error, ")
    advice = "; set it, or start the service inside a project" if first["type"] == "missing" else ""
    return f"{ENV_PREFIX}{field.upper()}: {said}{advice}"


S3_SCHEME = "s3://"
DEFAULT_PORTS = {"http": 80, "https": 443}
BUCKET_PATTERN = re.compile("[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_HOST_LABEL = "[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"({_HOST_LABEL}\.)+(?!\d+$){_HOST_LABEL}")
NON_PUBLIC_NETWORKS = tuple(  # of IPv6: IPv4 in other words (mapped, NAT64, 6to4, Teredo), and sites of old
    ipaddress.ip_network(network)
    for network in ("::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "fec0::/10")
)


def parse_allowed_entry(text: str) -> str:
    """Return an entry of the list in the form that `permits` compares.

    Raises:
        ValueError: no address could ever match it; the message says how to write it.
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
        raise ValueError(f"{_quoted(text)} is not a host, or has no port from 1 to 65535; {_EXPECTED_ENTRY}")
    if is_ip_address(host.strip("[]")):
        if stated is None and not is_public(host.strip("[]")):
            raise ValueError(f"{_quoted(text)} is an address of a network of your own; name its port too: {host}:8080")
    elif not _HOST_NAME.fullmatch(host):
        raise ValueError(
            f"{_quoted(text)} is not a name of public addresses; {_EXPECTED_ENTRY}; name a host of your own network "
            'by address and port, such as "10.1.2.3:8080"'
        )
    return host if stated is None else f"{host}:{stated}"


def is_allowed(allowed: Iterable[str], url: httpx.URL) -> bool:
    """Check whether the list holds the host and port of an address."""
    host = host_name(url)
    names = {f"{host}:{port_number(url)}"} | ({host} if port_number(url) == DEFAULT_PORTS[url.scheme] else set())
    return not names.isdisjoint(allowed)


def is_allowed_address(allowed: Iterable[str], url: httpx.URL) -> bool:
    """Check whether the list names an IP address with its port.

    Such an address need not be public.
    """
    return is_ip_address(url.raw_host.decode("ascii")) and f"{host_name(url)}:{port_number(url)}" in allowed


def host_name(url: httpx.URL) -> str:
    """Return the host of an address in the list's form: lower case, IPv6 in brackets."""
    host = url.raw_host.decode("ascii").lower()
    return f"[{host}]" if ":" in host else host


def port_number(url: httpx.URL) -> int:
    """Return the port of an address."""
    return url.port or DEFAULT_PORTS[url.scheme]


def is_ip_address(host: str) -> bool:
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
    return ip.is_global and not special and not any(ip in network for network in NON_PUBLIC_NETWORKS)


_EXPECTED_ENTRY = 'expected "data.example.org", "data.example.org:8443" or "s3://bucket"'


def _check_bucket(text: str) -> str:
    name = text[len(S3_SCHEME) :]
    if not (text.startswith(S3_SCHEME) and BUCKET_PATTERN.fullmatch(name)):
        first = name.split("/")[0].lower()
        instead = f'name the bucket alone: "{S3_SCHEME}{first}"' if BUCKET_PATTERN.fullmatch(first) else _EXPECTED_ENTRY
        raise ValueError(f"{_quoted(text)} is not a bucket of S3; {instead}")
    return text


def _suggestion(text: str) -> str:
    """Explain how to write a wrong entry that names a host."""
    found = re.fullmatch(
        r"\s*(?:https?://)?([\w-]+(?:\.[\w-]+)+(?::\d+)?)(?:[/?#].*)?\s*", text, re.DOTALL | re.IGNORECASE
    )
    return f'name the host alone: "{found[1]}"' if found else _EXPECTED_ENTRY


def _quoted(text: str) -> str:
    return f"{text[:100]!a}"
