"""Tests of a map in QGIS, if it is installed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stack_files import noise, write_stack
from talud.engine.runtime import Model
from talud.mapping.options import MapOptions
from talud.products.prediction import predict

# Python of the distribution's QGIS package.
PYTHON = "/usr/bin/python3"
QGIS_SCRIPT = """
import json, sys
from qgis.core import QgsApplication, QgsRasterLayer, QgsVectorLayer

application = QgsApplication([], False)
application.initQgis()
found = {}
for name in ("probability.tif", "landslides.tif"):
    layer = QgsRasterLayer(sys.argv[1] + "/" + name, name)
    found[name] = layer.isValid(), layer.renderer().type(), layer.loadDefaultStyle()[1]
for name in ("landslides", "not_mapped"):
    layer = QgsVectorLayer(sys.argv[1] + "/landslides.gpkg|layername=" + name, name, "ogr")
    colour = layer.renderer().symbol().symbolLayer(0).properties()["color"]
    found[name] = layer.isValid(), colour, layer.loadDefaultStyle()[0]
for name in ("landslides.gpkg|layername=landslides", "landslides.gpkg|layername=not_mapped", "landslides.geojson"):
    layer = QgsVectorLayer(sys.argv[1] + "/" + name, name, "ogr")
    valid = all(feature.geometry().isGeosValid() for feature in layer.getFeatures())
    found[name] = layer.featureCount(), layer.crs().authid(), valid
print(json.dumps(found))
del layer  # must be deleted before the application
application.exitQgis()
"""


@pytest.mark.slow
def test_qgis_loads_styles_and_polygons(model: Model, tmp_path: Path) -> None:
    if subprocess.run([PYTHON, "-c", "import qgis.core"], capture_output=True, check=False).returncode:
        pytest.skip(f"{PYTHON} has no QGIS (python3-qgis on Debian)")
    values = noise(60, 80)
    values[0, :20] = np.nan
    outcome = predict(
        model, write_stack(tmp_path / "stack.tif", values), tmp_path / "map", MapOptions(threshold=0.48, geojson=True)
    )
    assert outcome.landslides > 1
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "QT_QPA_PLATFORM": "offscreen"}
    command = [PYTHON, "-c", QGIS_SCRIPT, str(tmp_path / "map")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "Non-conformant" not in result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "probability.tif": [True, "singlebandpseudocolor", True],
        "landslides.tif": [True, "paletted", True],
        "landslides": [True, "230,30,60,89", "Loaded from Provider"],
        "not_mapped": [True, "196,196,196,190", "Loaded from Provider"],
        "landslides.gpkg|layername=landslides": [outcome.landslides, "EPSG:32618", True],
        "landslides.gpkg|layername=not_mapped": [1, "EPSG:32618", True],
        "landslides.geojson": [outcome.landslides, "EPSG:4326", True],
    }
