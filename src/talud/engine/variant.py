"""Which file of a model is run: the float32 one, or its variant in reduced precision."""

from __future__ import annotations

from pathlib import Path

from talud.contract import Precision, variant_path
from talud.engine.runtime import Model, Origin
from talud.engine.session import Provider
from talud.errors import ModelError


def open_variant(path: Path, precision: Precision | None, origin: Origin | None, provider: Provider = "auto") -> Model:
    """Open a model file, or its variant of a precision, which lies beside it.

    Args:
        path: of the model.
        precision: that is asked for. Default: that of the file, whatever it is.
        origin: its place in the registry.
        provider: as for `Model.load`.

    Raises:
        ModelError: as `Model.load`; or there is no such variant, or it was made of another model.
        ParamsError: as `Model.load`.
    """
    named = Model.load(path, origin, provider)
    if precision in (None, named.contract.derived.precision):
        return named
    beside = variant_path(path, precision)
    if named.contract.derived.precision != "float32" or beside == path:
        raise ModelError(
            f"{path}: is of precision {named.contract.derived.precision}, not {precision}; name the float32 file"
        )
    make = f"talud quantize models/{named.contract.origin.name}.onnx --precision {precision}"
    if not beside.is_file():
        if origin:
            raise ModelError(
                f"{named.title}: holds no variant of precision {precision}; run {make}, then talud register"
            )
        raise ModelError(f"{beside}: no such file; make it with talud quantize {path} --precision {precision}")
    variant = Model.load(beside, origin, provider)
    if variant.contract.derived.precision != precision or not variant.contract.is_variant_of(named.contract):
        again = f"{make}, then talud register," if origin else f"talud quantize {path} --precision {precision}"
        raise ModelError(f"{beside}: is not the {precision} variant of {path.name}; run {again} again")
    return variant
