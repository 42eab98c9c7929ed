"""Landslide mapping with U-Nets on satellite stacks.

`load_model` opens a model, and `predict` maps the landslides of a raster.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from talud.process import clean_process_environment

# Must run before rasterio, pyogrio or numexpr is imported.
clean_process_environment()

if TYPE_CHECKING:
    from pathlib import Path

    from talud.contract import Precision
    from talud.engine.runtime import Model
    from talud.engine.session import Provider
    from talud.mapping.options import MapOptions
    from talud.products.map_record import Prediction
    from talud.progress import Progress

__version__ = version("talud")
__all__ = ["MapOptions", "__version__", "load_model", "load_model_for", "predict"]


def __getattr__(name: str) -> type[MapOptions]:
    """Import `MapOptions` when it is first used."""
    if name == "MapOptions":
        from talud.mapping.options import MapOptions

        return MapOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_model(uri: str | Path, provider: Provider = "auto", precision: Precision | None = None) -> Model:
    """Open a model from a file or a registry.

    For example `talud.load_model("models:/landslide-unet-7band@champion")`.

    Args:
        uri: an `.onnx` file, or any MLflow model URI (`models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/…`). A URI
            is looked up in the store of the project around the working folder, or in the store that
            `MLFLOW_TRACKING_URI` names.
        provider: device that runs the network: `cpu`, `cuda`, or `auto`, which is CUDA if it is available.
        precision: `int8` or `float16` for the model's variant of that precision, stored next to the file or in the same
            registered version. Default: the model itself, which is float32 in the registry.

    Raises:
        ModelError: The file is missing, is not a talud model, or has no such variant.
        ParamsError: CUDA is requested and cannot be used.
        RegistryError: The registry does not hold the model.
    """
    from pathlib import Path

    from talud.engine.runtime import RegistryVersion, open_variant

    if isinstance(uri, Path) or ":/" not in uri:
        return open_variant(Path(uri), precision, None, provider)

    from talud import registry
    from talud.project import find_root

    fetched = registry.fetch(uri, find_root(Path.cwd()))
    return open_variant(fetched.path, precision, RegistryVersion(fetched.name, fetched.version), provider)


def load_model_for(raster: str | Path, model: str | Path, options: MapOptions | None = None) -> Model:
    """Open a model for a raster.

    Args:
        raster: raster to map.
        model: any model that `load_model` opens, or `auto` for the registered champion with the most bands that fits.
        options: options of the map, among them provider and precision.

    Raises:
        TaludError: As in `load_model`; or no champion fits the raster, or the raster cannot be read.
    """
    from talud.mapping.options import DEFAULT_OPTIONS

    options = options or DEFAULT_OPTIONS
    if model == "auto":
        # Imported here, because importing the registry takes as long as all other imports together.
        from talud import basin

        return basin.open_for_stack(raster, options.provider, options.precision)
    return load_model(model, options.provider, options.precision)


def predict(
    model: Model | str | Path,
    raster: str | Path,
    out: str | Path,
    options: MapOptions | None = None,
    progress: Progress | None = None,
) -> Prediction:
    """Map the landslides of a raster, as the command `talud predict` does.

    The map is recorded in the project around the working folder, if there is one, so that `talud lineage` finds it. A
    failure to record it is a `TaludWarning`.

    For example `talud.predict("models/7band.onnx", "stack.tif", "map", talud.MapOptions(tta=True))`.

    Args:
        model: an open model, or any argument that `load_model_for` accepts.
        raster: a stack, or any raster whose bands the model identifies by name: a path, or any other name that GDAL
            opens.
        out: folder for the files of the map; created if missing.
        options: options of the map. Default: those of the command.
        progress: callback that receives the number of finished tiles and the number of all tiles.

    Raises:
        ParamsError: An option is invalid, or an open model has another provider or precision.
        ModelError: The model cannot be opened, or the network fails.
        RegistryError: The registry does not hold the model.
        SourceError: The raster cannot be read.
        MismatchError: The raster does not fit the model.
        StudyError: The raster is a stack of a project whose parameters have changed since.
        OutputError: A product cannot be written; an earlier map is unchanged.
        ClusterError: The workers are not available, or were lost.
    """
    from pathlib import Path

    from talud.data.stack_record import check_raster_current
    from talud.mapping.options import DEFAULT_OPTIONS
    from talud.products import prediction

    options = options or DEFAULT_OPTIONS
    check_raster_current(raster)
    if isinstance(model, str | Path):
        model = load_model_for(raster, model, options)
    result = prediction.predict(model, raster, Path(out), options, progress)
    _record(Path(out))
    return result


def _record(out: Path) -> None:
    import warnings
    from pathlib import Path

    from talud.errors import TaludError, TaludWarning
    from talud.project import find_root

    if root := find_root(Path.cwd()):
        from talud.lineage.provenance import record_map

        try:
            record_map(root, out)
        except TaludError as error:
            message = f"the map was not recorded, so talud lineage cannot find it: {error}"
            warnings.warn(message, TaludWarning, stacklevel=3)
