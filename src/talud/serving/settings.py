"""What an agency sets about its service: in the environment, each name after `TALUD_SERVICE_`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, IPvAnyNetwork, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from talud.errors import ParamsError
from talud.project import root_around

PREFIX = "TALUD_SERVICE_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """The service's settings; relative paths are those of the working folder."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

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
    results_days: Annotated[float, Field(gt=0, description="how long maps and uploads are kept, in days")] = 90
    results_bytes: Annotated[int, Field(gt=0, description="what maps and uploads may take, in bytes")] = 200 * 10**9

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
            first = error.errors()[0]
            name = f"{PREFIX}{'_'.join(str(part) for part in first['loc'] if isinstance(part, str)).upper()}"
            raise ParamsError(f"{name}: {first['msg']}; set it, or start the service inside a project") from error
        if os.environ.get("FORWARDED_ALLOW_IPS") and not settings.proxies:
            raise ParamsError(
                "FORWARDED_ALLOW_IPS: is not read any more; name the proxies by their addresses, such as "
                f"{PREFIX}PROXIES='[\"127.0.0.1\"]'"
            )
        if not settings.data.is_dir():
            raise ParamsError(f"{settings.data}: no such folder; {PREFIX}DATA names the folder of the rasters")
        return settings

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL of the database."""
        return self.database or f"sqlite:///{(self.results.absolute() / 'service.db').as_posix()}"

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
