"""Summary of a map: a self-contained HTML page."""

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

# Maximum length of the scale bar, as a share of the map's width.
_MAX_SCALE_BAR_SHARE = 0.3


@dataclass(frozen=True)
class UnmappedReason:
    """Reason for unmapped pixels.

    Attributes:
        why: text of the reason.
        share: share of the raster's pixels, 0 to 1.
        square_kilometres: area of the pixels in km².
    """

    why: str
    share: float
    square_kilometres: float


@dataclass(frozen=True)
class SummaryPage:
    """Content of the page.

    Attributes:
        title: title of the page.
        synthetic: whether the raster is synthetic.
        dates: dates of the event and the acquisitions by name.
        picture: picture of the map as a data URI.
        background: name of the background layer.
        bar: length of the scale bar as text, and in percent of the map's width.
        hectares: area of each landslide in ha.
        square_kilometres: area of the raster in km².
        not_mapped: reasons for unmapped pixels, most frequent first.
        reduced: lines on pixels that are mapped without some band groups.
        prediction: figures of the map.
        model: title of the model.
        from_file: whether the model was loaded from a file instead of the registry.
        areas: training areas of the model.
        origin: origin of the map as names and values.
        notices: warnings to read before the map is used.
        training_share: share of landslide in the training areas, 0 to 1; None if it is not known.
        advice: what to do about an implausible map; empty for a plausible one.
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
    training_share: float | None
    advice: str

    @classmethod
    def of(
        cls, model: Model, info: RasterInfo, prediction: Prediction, rendered: RenderedMap, area: NDArray[np.float64]
    ) -> SummaryPage:
        """Collect the content of the page.

        Args:
            model: model that made the map.
            info: properties of the mapped raster.
            prediction: figures of the map.
            rendered: picture of the map.
            area: area of each landslide in m².
        """
        grid, contract = info.grid, model.contract
        metres = grid.resolution * grid.metres_per_unit
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
                "Grid": f"{dimensions(grid.width, grid.height)} of {metres:g} m, {grid.crs_label}",
                "Bands": ", ".join(contract.input.band_names),
                "Trained on": ", ".join(contract.areas_with_sizes),
                "MLflow run": contract.origin.run_id,
                "Data version": contract.origin.data_version,
                "Commit": contract.origin.commit,
                "Weights (SHA-256)": contract.origin.weights,
                "Ran on": prediction.provider,
                **map_record.unusual_settings(model, prediction),
                "Made by": f"talud {version('talud')}",
            },
            notices=map_record.notices(model, prediction),
            training_share=contract.training_share,
            advice=map_record.advice(model, prediction),
        )

    @property
    def verdict(self) -> DomainVerdict:
        """Verdict of the domain report on the raster."""
        return domain.overall_verdict(self.prediction.distances)

    @property
    def median(self) -> float:
        """Median landslide area in ha."""
        return float(np.median(self.hectares))

    @property
    def compared(self) -> list[DomainDistance]:
        """Bands that have a histogram to compare with."""
        return [one for one in self.prediction.distances if one.overlap is not None]


def write(path: Path, page: SummaryPage) -> None:
    """Write the page as HTML; equal content gives equal bytes."""
    environment = html_environment("talud.products", number=_number, percent=_percent, counted=counted)
    html = environment.get_template("summary.html").render(page=page, Verdict=DomainVerdict, domain=domain)
    path.write_text(html, encoding="utf-8")


def _data_uri_of(picture: Picture) -> str:
    """Return a picture as the data URI of a PNG.

    With a palette of 256 colours, the file has less than half the size.
    """
    stream = io.BytesIO()
    colours = Image.fromarray(picture).quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    colours.save(stream, "PNG")
    return data_uri(stream.getvalue(), "image/png")


def _number(value: float, decimals: int = 0) -> str:
    return f"{value:,.{decimals}f}"


def _percent(share: float) -> str:
    """Format a share in percent.

    Shares above 0 are never shown as 0.0 %.
    """
    return "< 0.1 %" if 0 < share < 0.0005 else f"{share:.1%}".replace("%", " %")
