"""The registered models, with what each says about itself."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel, Field

from talud.contract import FlatContract
from talud.serving.problems import described
from talud.serving.service import Reader, Running

router = APIRouter(tags=["models"])


class RegisteredModel(BaseModel):
    """A registered version."""

    name: str
    version: str
    aliases: list[str]
    uri: str = Field(description="as MLflow names it")
    created: str
    contract: FlatContract


class ModelList(BaseModel):
    """Registered versions that an alias points to."""

    models: list[RegisteredModel]


@router.get("/models", responses=described(401, 422))
def models(service: Running, _: Reader) -> ModelList:
    """The champions of the registry, and what else has an alias, with their contracts."""
    return ModelList(
        models=[
            RegisteredModel(
                name=version.name,
                version=version.version,
                aliases=sorted(version.aliases),
                uri=version.uri,
                created=version.created,
                contract=FlatContract.of(candidate.contract),
            )
            for version, candidate in service.models.aliased()
        ]
    )
