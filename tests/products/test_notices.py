"""Tests of a map's notices: printed, on its page and in its record."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from stack_files import noise, write_stack
from talud import load_model
from talud.cli.main import main
from talud.contract import Adaptation, Difference, Validation
from talud.engine.model_file import save_model

ADAPTED = Adaptation(
    weights="0" * 64, model="3band", version="unregistered", area="valley", raster="valley.tif", raster_digest="0",
    strength=1, squares=4, side=64, agreement_before=0.5, agreement_after=0.6,
)  # fmt: skip

Map = Callable[..., tuple[str, str, dict[str, object]]]


@pytest.fixture
def mapped(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Map:
    """Return a function that maps a raster with a changed contract.

    It returns the printed text, the page and the record.
    """
    monkeypatch.chdir(tmp_path)
    stack = write_stack(tmp_path / "the valley.tif", noise(60, 70))

    def run(*options: object, **changes: object) -> tuple[str, str, dict[str, object]]:
        contract = load_model(tiny_model).contract.replace(**changes)
        save_model(onnx.load(tiny_model), contract, tmp_path / "model.onnx")
        arguments = ["predict", "model.onnx", stack.name, "--out", "map", *options]
        monkeypatch.setattr(sys, "argv", ["talud", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        page = " ".join((tmp_path / "map/summary.html").read_text().split())
        return capsys.readouterr().out, page, json.loads((tmp_path / "map/prediction.json").read_text())

    return run


@pytest.mark.slow
def test_adapted_model_is_named_in_all_outputs(mapped: Map, tmp_path: Path) -> None:
    mapped()
    before = np.asarray(Image.open(tmp_path / "map/quicklook.png"))
    out, page, record = mapped(adapted=ADAPTED)
    notice = "dapted to valley without labels, which can multiply false alarms"
    assert f"warning: a{notice}" in out
    assert f"A{notice}" in page
    assert f"A{notice}" in record["notices"]
    after = np.asarray(Image.open(tmp_path / "map/quicklook.png"))
    assert after.shape[0] == before.shape[0] + 24  # one more line above the picture
    reason = "the model was adapted, so its errors on the validation blocks are no longer known"
    assert f"no estimate of the landslide area: {reason}" in out
    assert f"No estimate of the landslide area: {reason}" in page
    assert record["no_landslide_area_estimate"] == reason


def test_adaptation_hint_is_a_valid_shell_command(mapped: Map) -> None:
    hued = (Difference(bands=("red", "green"), edges=(400.0, 500.0), shares=(1.0,)),)
    out, _, _ = mapped(differences=hued)
    line = next(line for line in out.splitlines() if "talud adapt" in line)
    words = shlex.split(line[line.index("talud adapt") :])
    assert words == ["talud", "adapt", "model.onnx", "the valley.tif", "--out", "model.the valley.onnx"]
    assert "can multiply false alarms" in out


@pytest.mark.parametrize(
    ("threshold", "notice"),
    [
        (0.001, "he map calls 100% of the land a landslide: the map is probably wrong"),
        (0.999, "othing is mapped as landslide: no probability reaches the threshold"),
    ],
)
def test_constant_map_has_a_notice(mapped: Map, threshold: float, notice: str) -> None:
    out, page, record = mapped("--threshold", threshold)
    assert notice in out
    assert notice in page
    assert record["landslide_share"] == pytest.approx(float(threshold < 0.5))
    assert "no estimate of the landslide area: the threshold differs from that of the validation, 0.5" in out


def test_implausible_map_states_shares_and_advice(mapped: Map) -> None:
    share = 0.04
    out, page, record = mapped("--threshold", 0.001, landslide_share=share)
    notice = "he map calls 100% of the land a landslide; the training areas had 4%: the map is probably wrong"
    advice = (
        "ompare the map with the image before using it, and adapt the model to this raster (talud adapt), fine-tune it "
        "with at least 10 labelled patches of this area (talud finetune) or train with images of the region"
    )
    assert f"warning: t{notice}\n  c{advice}\n" in out
    assert f"T{notice}." in page
    assert f"C{advice}." in page
    assert "100.0 % of the mapped pixels, 4.0 % in the training areas" in page
    assert f"T{notice}" in record["notices"]
    assert record["domain"]["landslide"] == {"mapped_share": 1.0, "training_share": share, "plausible": False}
    out, _, record = mapped(landslide_share=0.5)
    assert "probably wrong" not in out
    assert record["domain"]["landslide"]["plausible"]


def test_model_without_skill_has_a_notice(mapped: Map) -> None:
    nothing = Validation(tp=0, fp=0, fn=100, tn=900, blocks=8, design_effects=(1, 1), correlation=0)
    out, page, _ = mapped(validation=nothing)
    notice = "on the validation blocks no better than calling nothing a landslide: F1 0.000"
    assert f"warning: the model is {notice}" in out
    assert notice in page
    assert "the model mapped everything, or nothing, on its validation blocks as landslide" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--tta",), "the map is a mean over eight"),
        (("--halo", 0, "--tile", 16), "the halo is smaller than that of the validation"),
        ((), "the model does not state its errors on the validation blocks"),
    ],
)
def test_missing_estimate_has_its_reason(mapped: Map, options: tuple[object, ...], reason: str) -> None:
    out, page, record = mapped(*options)
    assert reason in out.splitlines()[-1]
    assert reason in page.replace("&#39;", "'")
    assert reason in record["no_landslide_area_estimate"]
