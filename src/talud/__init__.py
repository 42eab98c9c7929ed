"""talud: U-Nets that map landslides, from versioned satellite stacks to a registered model and a map."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from talud.process import clean_process_environment

clean_process_environment()  # before anything imports rasterio, pyogrio or numexpr

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
    """Open a model, such as `talud.load_model("models:/landslide-unet-7band@champion")`.

    Args:
        uri: an `.onnx` file, or any MLflow model URI (`models:/NAME@ALIAS`, `models:/NAME/VERSION`, `runs:/…`). A URI
            is looked up in the store of the project around the working folder, or in `MLFLOW_TRACKING_URI`.
        provider: what the network runs on: `cpu`, `cuda`, or `auto`, which is CUDA where it can be used.
        precision: `int8` or `float16`: the variant of that precision, which lies beside the file or in the same
            registered version. Default: the file itself, which is float32 in the registry.

    Raises:
        ModelError: The file is missing or is not a talud model, or there is no such variant of it.
        ParamsError: CUDA is asked for and cannot be used.
        RegistryError: The registry does not have it.
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
    """Open the model for a raster: the one that is named, or the best fit of the registry.

    Args:
        raster: raster that is to be mapped.
        model: anything that `load_model` opens, or `auto`: the registered champion with most bands that fits.
        options: options of the map, among them provider and precision.

    Raises:
        TaludError: As `load_model` does; or no champion fits the raster, or it cannot be read.
    """
    from talud.mapping.options import DEFAULT_OPTIONS

    options = options or DEFAULT_OPTIONS
    if model == "auto":
        # Imported here alone: the registry takes as long to import as everything else together.
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

    The map is recorded in the project around the working folder, if there is one, where `talud lineage` finds it; a
    failure to record it is a `TaludWarning`.

    For example `talud.predict("models/7band.onnx", "stack.tif", "map", talud.MapOptions(tta=True))`.

    Args:
        model: a model that is open, or whatever `load_model_for` opens.
        raster: a stack, or any raster whose bands the model knows by name: a path, or whatever else GDAL opens.
        out: folder of the map's files; made where it is missing.
        options: options of the map. Default: those of the command.
        progress: callback that gets how many tiles are done and how many there are.

    Raises:
        ParamsError: An option makes no sense, or an open model is of another provider or precision.
        ModelError: The model cannot be opened, or the network fails.
        RegistryError: The registry does not have the model.
        SourceError: The raster cannot be read.
        MismatchError: The raster does not fit the model.
        StudyError: The raster is a stack of a project whose parameters have changed since.
        OutputError: A product cannot be written; an earlier map is untouched.
        ClusterError: The workers cannot be had, or are lost.
    """
    from pathlib import Path

    from talud.data.record import check_raster_current
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
            message = f"the map is not recorded for talud lineage: {error}"
            warnings.warn(message, TaludWarning, stacklevel=3)
