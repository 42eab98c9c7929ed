"""`talud sample`: make the two synthetic basins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from talud.cli.app import app
from talud.cli.progress import shown


@app.command("sample")
def sample(
    out: Annotated[Path, typer.Option(help="Folder for the two basins.", file_okay=False)] = Path("data"),
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same bytes.")] = 20150518,
) -> None:
    """Make two SYNTHETIC basins to try talud on, `synthetic_argelia` and `synthetic_liboriana`.

    Each holds an optical image, a DTM, VV amplitude before and after the event, an inventory and the outlines of
    clouds. They resemble a tropical mountain region, differ in light, vegetation, radar gain and size of the
    landslides, and show no real place.

    **Examples**

    `talud sample`

    `talud sample --out /tmp/basins --seed 7`
    """
    from talud.data.sample import write
    from talud.data.sample.character import BASINS

    with shown("making synthetic basins", "basins") as tell:
        tell(0, len(BASINS))
        for done, paths in enumerate(write(out, seed), start=1):
            tell(done, len(BASINS))
            size = sum(path.stat().st_size for path in paths) / 1e6
            print(f"{paths[0].parent}: {', '.join(path.name for path in paths)} ({size:.1f} MB, synthetic)", flush=True)
