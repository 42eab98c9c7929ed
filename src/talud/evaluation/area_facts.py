"""Facts of an area for the report."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from talud.data.stack_record import check_current_stack
from talud.grid import Grid
from talud.project import Project
from talud.raster import open_raster


@dataclass(frozen=True)
class AreaFacts:
    """Facts of an area for the report.

    Attributes:
        name: name of the area.
        role: training, gate or transfer.
        synthetic: True if the data are synthetic.
        dates: event or acquisition → date.
        width: width of the grid in pixels.
        height: height of the grid in pixels.
        resolution: side of a pixel in units of the CRS.
        square_kilometres: area of the grid.
    """

    name: str
    role: str
    synthetic: bool
    dates: dict[str, date]
    width: int
    height: int
    resolution: float
    square_kilometres: float

    @classmethod
    def read(cls, project: Project, name: str) -> AreaFacts:
        """Read an area's facts from params.yaml and its stack.

        Raises:
            SourceError: the stack is missing or cannot be read.
        """
        area = project.params.area(name)
        with open_raster(check_current_stack(project, name)) as stack:
            grid, tags = Grid.of(stack), stack.tags()
        dates = {
            "event": area.event,
            "optical": area.acquired.optical,
            "SAR before": area.acquired.sar_pre,
            "SAR after": area.acquired.sar_post,
        }
        return cls(
            name=name,
            role=area.role,
            synthetic=tags.get("TALUD_SYNTHETIC") == "yes",
            dates={what: day for what, day in dates.items() if day},
            width=grid.width,
            height=grid.height,
            resolution=grid.resolution,
            square_kilometres=grid.width * grid.height * grid.pixel_area / 1e6,
        )
