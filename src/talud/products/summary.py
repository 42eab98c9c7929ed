"""Summary of a map: one HTML page that needs no other file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from talud.engine.runtime import Model
from talud.imaging import Picture, data_uri, format_length, round_length
from talud.mapping import domain
from talud.mapping.domain import DomainDistance, DomainVerdict
from talud.mapping.reader import RasterInfo
from talud.products import map_record
from talud.products.map_record import Prediction
from talud.products.quicklook import RenderedMap
from talud.text import counted, dimensions, html_environment

_MAX_SCALE_BAR_SHARE = 0.3  # of the map's width, at most, for the scale bar


@dataclass(frozen=True)
class UnmappedReason:
    """Reason why pixels are not mapped.

    Attributes:
        why: in words.
        share: of the raster, 0 to 1.
        square_kilometres: of those pixels.
    """

    why: str
    share: float
    square_kilometres: float


@dataclass(frozen=True)
class SummaryPage:
    """Content of the page.

    Attributes:
        dates: what happened or was acquired → when.
        picture: the map, as the address of a picture that holds it.
        background: what lies under the map.
        bar: length of the scale bar in words, and in percent of the map's width.
        hectares: of each landslide.
        reduced: what is mapped without some of the model's groups, in a line each.
        square_kilometres: of the whole raster.
        origin: where the map came from: what → which.
        notices: what a reader must know before the map is trusted, in a line each.
    """

    title: str
    synthetic: bool
    dates: dict[str, str]
    picture: str
    background: str
    bar: tuple[str, float]
    hectares: NDArray[np.float64]
    square_kilometres: float
    not_mapped: Sequence[UnmappedReason]
    reduced: Sequence[str]
    prediction: Prediction
    model: str
    from_file: bool
    areas: Sequence[str]
    origin: dict[str, str]
    notices: Sequence[str]

    @classmethod
    def of(
        cls, model: Model, info: RasterInfo, prediction: Prediction, rendered: RenderedMap, area: NDArray[np.float64]
    ) -> SummaryPage:
        """Gather the content.

        Args:
            model: model that made the map.
            info: properties of the mapped raster.
            prediction: figures of the map.
            rendered: picture of the map.
            area: area of each landslide in m².
        """
        grid, contract = info.grid, model.contract
        pixel = grid.pixel_area * grid.metres_per_unit**2 / 1e6
        width = rendered.picture.shape[1] * rendered.metres
        length = round_length(_MAX_SCALE_BAR_SHARE * width)
        return cls(
            title=info.title,
            synthetic=info.synthetic,
            dates=map_record.dates(info.provenance),
            picture=_data_uri_of(rendered.picture),
            background=rendered.background,
            bar=(format_length(length), 100 * length / width),
            hectares=area / 10_000,
            square_kilometres=prediction.pixels * pixel,
            not_mapped=[
                UnmappedReason(why, pixels / prediction.pixels, pixels * pixel)
                for why, pixels in prediction.not_mapped.items()
            ],
            reduced=map_record.reduced_lines(prediction, contract),
            prediction=prediction,
            model=model.title,
            from_file=not model.version.isdecimal(),
            areas=contract.origin.areas,
            origin={
                "Raster": info.name,
                "Grid": f"{dimensions(grid.width, grid.height)} of {contract.input.pixel_size:g} m, {grid.crs_label}",
                "Bands": ", ".join(contract.input.band_names),
                "Trained on": ", ".join(contract.origin.areas),
                "MLflow run": contract.origin.run_id,
                "Data version": contract.origin.data_version,
                "Commit": contract.origin.commit,
                "Weights (SHA-256)": contract.origin.weights,
                "Ran on": prediction.provider,
                **map_record.unusual_settings(model, prediction),
                "Made by": f"talud {version('talud')}",
            },
            notices=map_record.notices(model, prediction),
        )

    @property
    def verdict(self) -> DomainVerdict:
        """Return the verdict on the raster as a whole."""
        return domain.overall_verdict(self.prediction.distances)

    @property
    def median(self) -> float:
        """Return the median area of the landslides in hectares; there must be one."""
        return float(np.median(self.hectares))

    @property
    def compared(self) -> list[DomainDistance]:
        """Return the bands that have a histogram to compare."""
        return [one for one in self.prediction.distances if one.overlap is not None]


def write(path: Path, page: SummaryPage) -> None:
    """Write the page as HTML: the same bytes for the same map."""
    environment = html_environment("talud.products", number=_number, percent=_percent, counted=counted)
    html = environment.get_template("summary.html").render(page=page, Verdict=DomainVerdict, domain=domain)
    path.write_text(html, encoding="utf-8")


def _data_uri_of(picture: Picture) -> str:
    """Return a picture as a data URI, in 256 colours: less than half the bytes, and as clear."""
    stream = io.BytesIO()
    colours = Image.fromarray(picture).quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours.save(stream, "PNG")
    return data_uri(stream.getvalue(), "image/png")


def _number(value: float, decimals: int = 0) -> str:
    return f"{value:,.{decimals}f}"


def _percent(share: float) -> str:
    """Return a share in percent; a share above 0 is never shown as 0.0 %."""
    return "< 0.1 %" if 0 < share < 0.0005 else f"{share:.1%}".replace("%", " %")
