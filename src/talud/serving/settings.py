"""What an agency sets about its service: in the environment, each name after `TALUD_SERVICE_`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, FiniteFloat, IPvAnyNetwork, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from talud.errors import ParamsError
from talud.project import root_around
from talud.serving import allowlist

PREFIX = "TALUD_SERVICE_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """The service's settings; relative paths are those of the working folder."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

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
        return tuple(allowlist.entry(each) for each in value)

    @field_validator("database")
    @classmethod
    def _check_database(cls, value: str) -> str:
        """Check the URL of the database.

        Messages never contain its password.
        """
        try:
            url = make_url(value or "sqlite:///service.db")
        except (SQLAlchemyError, ValueError) as error:
            raise ValueError(f"is no URL; {_DATABASES}") from error
        if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
            raise ValueError(f"{url.drivername} is no database that the service can use; {_DATABASES}")
        in_memory = url.get_backend_name() == "sqlite" and (
            not url.database or ":memory:" in url.database or url.database.startswith("file:")
        )
        if in_memory:
            raise ValueError("the database would be lost when the service ends; name a file: sqlite:////srv/service.db")
        return value

    @model_validator(mode="before")
    @classmethod
    def _of_the_project(cls, given: dict[str, object]) -> dict[str, object]:
        root = root_around(Path.cwd())
        if root is None:
            return given
        return {"data": root / "stacks", "results": root / ".talud" / "service"} | given

    @classmethod
    def load(cls) -> Settings:
        """The settings of the environment.

        Raises:
            ParamsError: one is missing or makes no sense.
        """
        # HOST and PORT: Kubernetes sets them for a service named talud.
        known = {f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        if unknown := sorted(
            name
            for name in os.environ
            if name.startswith(PREFIX) and name not in known and not re.match("(HOST|PORT)", name.removeprefix(PREFIX))
        ):
            raise ParamsError(f"{unknown[0]}: there is no such setting; there are {', '.join(sorted(known))}")
        try:
            settings = cls()
        except SettingsError as error:  # of a setting that is a list
            named = re.search('field "([a-z_]+)"', str(error))
            name = named[1].upper() if named else "ALLOWED"
            raise ParamsError(f'{PREFIX}{name}: is no JSON; set a list such as ["data.example.org"]') from error
        except ValidationError as error:
            raise ParamsError(_told(error)) from error
        if os.environ.get("FORWARDED_ALLOW_IPS") and not settings.proxies:
            raise ParamsError(
                "FORWARDED_ALLOW_IPS: is not read any more; name the proxies by their addresses, such as "
                f"{PREFIX}PROXIES='[\"127.0.0.1\"]'"
            )
        settings._check_folders()
        return settings

    def _check_folders(self) -> None:
        """Check that the folder of rasters exists, and that of results is separate.

        Raises:
            ParamsError: the folder of rasters is missing, or the folders overlap.
        """
        if not self.data.is_dir():
            raise ParamsError(f"{self.data}: no such folder; {PREFIX}DATA names the folder of the rasters")
        data, results = self.data.resolve(), self.results.resolve()
        below = results.relative_to(data).parts if results.is_relative_to(data) else None
        if below is not None and not any(part.startswith(".") for part in below):  # hidden folders are no client's
            raise ParamsError(
                f"{self.results}: lies in the folder of the rasters, {self.data}, so that maps would be rasters to "
                f"map; name a folder outside by {PREFIX}RESULTS"
            )
        own = [results / name for name in ("jobs", "uploads", "workers") if data.is_relative_to(results / name)]
        if own:
            raise ParamsError(
                f"{self.data}: lies in {own[0]}, which the service cleans up; name a folder outside by {PREFIX}DATA"
            )

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL of the database."""
        return self.database or f"sqlite:///{(self.results.absolute() / 'service.db').as_posix()}"

    def without_folders(self, said: str) -> str:
        """Return a message without the locations of the service's folders."""
        for folder in (self.results, self.data):
            said = said.replace(f"{folder.absolute()}/", "")
        return said

    def open_to_all(self, host: str) -> bool:
        """Whether no key is asked for, where the service listens at that host.

        Raises:
            ParamsError: keys are switched off and others can reach the host.
        """
        if self.keys_required is False and host not in LOOPBACK:
            raise ParamsError(
                f"{PREFIX}KEYS_REQUIRED is false, but {host} can be reached by others; listen at 127.0.0.1, or leave "
                "the keys on"
            )
        return host in LOOPBACK if self.keys_required is None else not self.keys_required


_DATABASES = "expected sqlite:////FOLDER/FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME"


def _told(error: ValidationError) -> str:
    """Return the first fault of the settings in one line."""
    first = error.errors()[0]
    field = str(first["loc"][0]) if first["loc"] else ""
    said = first["msg"].removeprefix("Value error, ")
    advice = "; set it, or start the service inside a project" if first["type"] == "missing" else ""
    return f"{PREFIX}{field.upper()}: {said}{advice}"
