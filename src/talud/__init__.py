"""talud: U-Nets that map landslides, from versioned satellite stacks to a registered model and a map."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from talud.environment import settle_process

settle_process()  # before anything imports rasterio, pyogrio or numexpr

if TYPE_CHECKING:
    from pathlib import Path

    from talud.contract import Precision
    from talud.engine.runtime import Model
    from talud.engine.session import Provider

__version__ = version("talud")
__all__ = ["__version__", "load_model"]


def load_model(uri: str | Path, provider: Provider = "auto", precision: Precision | None = None) -> Model:
    """Open a model: `talud.load_model("models:/landslide-unet-7band@champion").predict(raster, out)`.

    Args:
        uri: an `.onnx` file, or any MLflow model URI (`models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/…`). A URI
            is looked up in the store of the project around the working folder, or in `MLFLOW_TRACKING_URI`.
        provider: what the network runs on: `cpu`, `cuda`, or `auto`, which is CUDA where it can be used.
        precision: `int8` or `float16`: the variant of that precision, which lies beside the file or in the same
            registered version. Default: the file itself, which is float32 in the registry.

    Raises:
        ModelError: the file is missing or is not a talud model, or there is no such variant of it.
        ParamsError: CUDA is asked for and cannot be used.
        RegistryError: the registry does not have it.
    """
    from pathlib import Path

    from talud.engine.runtime import Origin
    from talud.engine.variant import open_variant

    if isinstance(uri, Path) or ":/" not in uri:
        return open_variant(Path(uri), precision, None, provider)

    from talud import registry
    from talud.project import root_around

    fetched = registry.fetch(uri, root_around(Path.cwd()))
    return open_variant(fetched.path, precision, Origin(fetched.name, fetched.version), provider)
