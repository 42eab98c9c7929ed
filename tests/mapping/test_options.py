"""Tests of the options of a map."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

import talud
from stack_files import noise, write_stack
from talud.cli import maps as command_line
from talud.engine.runtime import Model
from talud.errors import ParamsError
from talud.mapping.options import MapOptions, ResultOptions
from talud.serving.jobs import MapRequest
from talud.serving.ogc_process import Inputs, process_description


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threshold": 5}, "the threshold is 5; it must be between 0 and 1"),
        ({"threshold": float("nan")}, "the threshold is nan; it must be between 0 and 1"),
        ({"minimum_area": -1.5}, "the minimum area is -1.5 m²; it must be 0 or more"),
        ({"minimum_area": float("inf")}, "the minimum area is inf m²; it must be 0 or more"),
        ({"tile": 0}, "the tile is 0; it must be at least 1"),
        ({"halo": -1}, "the halo is -1; it must be at least 0"),
        ({"treshold": 0.5}, "unknown map option 'treshold'; use one of threshold, minimum_area, "),
        ({"provider": "tpu"}, "the option provider is 'tpu': Input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_invalid_map_options_are_refused_in_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(ParamsError) as caught:
        MapOptions(**given)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("command", ["map", "predict"])
def test_commands_accept_every_map_option(command: str) -> None:
    from talud.cli.main import app

    [function] = [each.callback for each in app.registered_commands if each.name == command]
    taken = inspect.signature(function).parameters
    assert {name: taken[name].default for name in MapOptions.model_fields} == MapOptions().model_dump()
    tile_help = command_line.MAP_OPTIONS["tile"].__metadata__[0].help
    assert tile_help == command_line.as_sentence(MapOptions.model_fields["tile"].description)


def test_service_describes_the_same_map_options() -> None:
    inputs = process_description()["inputs"]
    for name, field in ResultOptions.model_fields.items():
        assert inputs[name]["description"] == field.description
    given = Inputs.model_validate({"raster": {"href": "a.tif"}, "threshold": 0.3, "minimum_area": 100})
    chosen = given.model_dump(include=set(ResultOptions.model_fields))
    assert MapRequest(raster="a.tif", **chosen).options == MapOptions(threshold=0.3, minimum_area=100)


def test_opened_model_of_another_precision_is_refused(model: Model, tmp_path: Path) -> None:
    stack = write_stack(tmp_path / "stack.tif", noise(40, 40))
    with pytest.raises(ParamsError, match=r"the precision is int8, but .* is open with another"):
        talud.predict(model, stack, tmp_path / "map", MapOptions(precision="int8"))
    assert not (tmp_path / "map").exists()


def test_map_made_in_python_is_recorded_in_the_project(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("")
    stack = write_stack(tmp_path / "stack.tif", noise(40, 40))
    talud.predict(tiny_model, stack, tmp_path / "map", MapOptions(geojson=True))
    [record] = (tmp_path / ".talud/maps").iterdir()
    assert json.loads(record.read_text())["folder"] == "map"
    assert (tmp_path / "map/landslides.geojson").is_file()
