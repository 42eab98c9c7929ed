"""Tests of local raster references and of the file checks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
import rasterio
import rasterio.shutil
from rasterio.vrt import WarpedVRT

from stack_files import noise, write_stack
from talud.errors import SourceError
from talud.serving.raster_paths import find_mask, resolve_raster
from talud.serving.rasters import has_mask
from talud.serving.settings import Settings

UPLOAD = "0f8fad5b-d9cb-469f-a165-70867728950e"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stack(tmp_path_factory.mktemp("stack") / "a.tif", noise(20, 28))


@pytest.fixture
def settings(tmp_path: Path, stack: Path) -> Settings:
    """Return settings with two rasters in the data folder and one outside."""
    (tmp_path / "data/basins").mkdir(parents=True)
    for place in ("data/a.tif", "data/basins/b.tif", "secret.tif"):
        shutil.copy(stack, tmp_path / place)
    (tmp_path / f"results/uploads/{UPLOAD}").mkdir(parents=True)
    return Settings(data=tmp_path / "data", results=tmp_path / "results")


def error_message(href: str, settings: Settings) -> str:
    with pytest.raises(SourceError) as caught:
        resolve_raster(href, settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rasters_below_data_folder_are_found(settings: Settings) -> None:
    assert resolve_raster("a.tif", settings) == settings.data / "a.tif"
    assert resolve_raster("basins/b.tif", settings) == settings.data / "basins/b.tif"


def test_non_ascii_names_are_found(settings: Settings) -> None:
    for name in ("cañón de la Liboriana.tif", "地滑り.tif", "what? #1 & 100%!.tif"):
        shutil.copy(settings.data / "a.tif", settings.data / name)
        assert resolve_raster(name, settings).name == name


@pytest.mark.parametrize(
    "href",
    [
        "",
        ".",
        "..",
        "../secret.tif",
        "basins/../../secret.tif",
        "basins/../a.tif",
        "./a.tif",
        "basins//b.tif",
        "/etc/passwd",
        "//host/a.tif",
        "{outside}/secret.tif",
        "{data}/a.tif",
        "/vsizip/{data}/a.zip/a.tif",
        "/vsizip/a.zip/a.tif",
        "/vsicurl/http://127.0.0.1/a.tif",
        "/vsitar/a.tar/a.tif",
        "/vsimem/a.tif",
        "/vsis3/bucket/a.tif",
        "/vsistdin/",
        "/vsisubfile/0_100,a.tif",
        "vrt://a.tif",
        "vrt://{outside}/secret.tif?bands=1",
        "GTIFF_DIR:1:a.tif",
        "GTIFF_RAW:a.tif",
        'NETCDF:"a.nc":band',
        "zip+https://example.org/a.zip!a.tif",
        "https://example.org/a.tif",
        "file:///etc/passwd",
        "file://{data}/a.tif",
        "C:/a.tif",
        "basins\\b.tif",
        "..\\secret.tif",
        "a.tif\0",
        "a.tif\0.png",
        "a\n.tif",
        "a\u202e.tif",
        "a\ud800.tif",
        "<VRTDataset/>",
        "a.tif/",
        "a.tif/..",
        "basins",
        "basins/",
        "%2e%2e/secret.tif",
        ".hidden/a.tif",
        "nothing.tif",
        "a" * 300 + ".tif",
        "a/" * 3000 + "a.tif",
        "uploads",
        "uploads/",
        "uploads/..",
        f"uploads/{UPLOAD}",
        f"uploads/{UPLOAD.upper()}",
        f"uploads/{UPLOAD}/a.tif",
        f"uploads/{{{UPLOAD}}}",
        f"uploads/{uuid.UUID(UPLOAD).hex}",
    ],
)
def test_other_references_are_refused(href: str, settings: Settings, tmp_path: Path) -> None:
    (settings.data / ".hidden").mkdir()
    shutil.copy(settings.data / "a.tif", settings.data / ".hidden/a.tif")
    error_message(href.replace("{outside}", str(tmp_path)).replace("{data}", str(settings.data)), settings)


def test_link_is_followed_only_inside_data_folder(settings: Settings, tmp_path: Path) -> None:
    (settings.data / "out.tif").symlink_to(tmp_path / "secret.tif")
    (settings.data / "up").symlink_to(tmp_path)
    (settings.data / "in.tif").symlink_to("basins/b.tif")
    (settings.data / "circle.tif").symlink_to("circle.tif")
    for href in ("out.tif", "up/secret.tif", "circle.tif"):
        error_message(href, settings)
    assert resolve_raster("in.tif", settings) == settings.data / "basins/b.tif"


def test_data_folder_may_be_a_link(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(settings.data)
    assert resolve_raster("a.tif", settings.model_copy(update={"data": tmp_path / "link"})) == settings.data / "a.tif"


def test_upload_is_the_only_file_of_its_folder(settings: Settings, tmp_path: Path) -> None:
    folder = settings.results / "uploads" / UPLOAD
    shutil.copy(settings.data / "a.tif", folder / "mine.tif")
    (folder / "mine.tif.aux.xml").write_text("<PAMDataset/>")
    assert resolve_raster(f"uploads/{UPLOAD}", settings) == folder / "mine.tif"
    (folder / "another.tif").symlink_to(tmp_path / "secret.tif")
    error_message(f"uploads/{UPLOAD}", settings)
    (folder / "mine.tif").unlink()
    error_message(f"uploads/{UPLOAD}", settings)


@pytest.mark.parametrize(
    "side",
    ["a.tfw", "a.TFW", "a.tifw", "a.wld", "a.tab", "a.aux", "a.IMD", "a.RPB", "a.rpc", "a_RPC.TXT", "a_rpc.txt",
     "a_metadata.txt", "a.pvl", "a.xml", "a.tif.ovr", "a.tif.msk", "a.tif.aux.xml", "a.tif.ovr.aux.xml",
     "a.tif.msk.ovr", "A.TIF.AUX.XML"],
)  # fmt: skip
@pytest.mark.parametrize("first", [False, True], ids=["at first", "after the raster passed"])
def test_sidecar_link_out_of_folder_is_refused(side: str, first: bool, settings: Settings, tmp_path: Path) -> None:
    if first:
        resolve_raster("a.tif", settings)
    (tmp_path / "secret.txt").write_text("5\n0\n0\n-5\n123456\n654321\n")
    (settings.data / side).symlink_to(tmp_path / "secret.txt")
    assert "leads out of its folder" in error_message("a.tif", settings)
    (settings.data / side).unlink()
    resolve_raster("a.tif", settings)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_world_file_link_out_of_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    with rasterio.open(settings.data / "a.tif") as dataset:
        values = dataset.read()
    with rasterio.open(
        settings.data / "c.tif", "w", "GTiff", 28, 20, 3, dtype="float32", crs="EPSG:32618"
    ) as writer:  # without a geotransform
        writer.write(values)
    (settings.data / "c.tfw").write_text("5\n0\n0\n-5\n400000\n650000\n")
    resolve_raster("c.tif", settings)  # a world file in the folder is accepted
    (settings.data / "world").mkdir()
    (settings.data / "c.tfw").rename(settings.data / "world/c.tfw")
    (settings.data / "c.tfw").symlink_to("world/c.tfw")  # a link inside the folder is accepted
    resolve_raster("c.tif", settings)
    (settings.data / "world/c.tfw").unlink()
    (settings.data / "world/c.tfw").symlink_to(tmp_path / "secret.tif")  # a link to a link
    assert "leads out of its folder" in error_message("c.tif", settings)


@pytest.mark.parametrize(
    "content",
    [
        '<PAMDataset><PAMRasterBand band="1"><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{}</MDI></Metadata>'
        "</PAMRasterBand></PAMDataset>",
        '<PAMDataset><PAMRasterBand band="2"><Metadata domain="OVERVI&#69;WS"><MDI key="OVERVIEW_FIL&#69;">{}</MDI>'
        "</Metadata></PAMRasterBand></PAMDataset>",
        '<PAMDataset><Metadata domain="OVERVI&#69;WS"><MDI key="OVERVIEW_FIL&#69;">{}</MDI></Metadata></PAMDataset>',
        '<PAMDataset><PAMRasterBand band="1"><Overview><SourceFilename>{}</SourceFilename></Overview></PAMRasterBand>'
        "</PAMDataset>",
        '<PAMDataset><PAMRasterBand band="1"><OverviewFile>{}</OverviewFile></PAMRasterBand></PAMDataset>',
        "<!-- <PAMDataset --><VRTDataset><SourceFilename>{}</SourceFilename></VRTDataset>",
        '<PAMDataset><Metadata domain="GEOLOCATION"><MDI key="X_DATASET">{}</MDI></Metadata></PAMDataset>',
    ],
)
@pytest.mark.parametrize("raster", ["a.tif", "a.tif.ovr"])
def test_file_reference_in_pam_sidecar_is_refused(
    content: str, raster: str, settings: Settings, tmp_path: Path
) -> None:
    if raster != "a.tif":
        shutil.copy(settings.data / "a.tif", settings.data / raster)
    (settings.data / f"{raster}.aux.xml").write_text(content.format(tmp_path / "secret.tif"))
    assert "secret" not in error_message("a.tif", settings)


def test_overview_file_in_band_tags_is_refused(settings: Settings, tmp_path: Path) -> None:
    with rasterio.open(settings.data / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(2, "OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "secret.tif"))
    assert "refer to further files" in error_message("a.tif", settings)


def test_mask_passes_same_checks_as_raster(settings: Settings, tmp_path: Path) -> None:
    raster, mask = resolve_raster("a.tif", settings), settings.data / "a.mask.tif"
    assert find_mask(raster, settings) is None
    shutil.copy(raster, settings.data / "known.tif")
    mask.symlink_to("known.tif")
    assert find_mask(raster, settings) == settings.data / "known.tif"
    for outside in (tmp_path / "secret.tif", tmp_path / "missing.tif", Path("/etc/passwd")):
        mask.unlink()
        mask.symlink_to(outside)
        with pytest.raises(SourceError) as caught:
            find_mask(raster, settings)
        assert str(outside) not in str(caught.value)
        assert not has_mask(raster, settings)
        resolve_raster("a.tif", settings)  # the raster itself is accepted
    mask.unlink()
    mask.write_text("<VRTDataset/>")
    with pytest.raises(SourceError, match="not a GeoTIFF"):
        find_mask(raster, settings)


def test_named_pipe_is_refused(settings: Settings) -> None:
    os.mkfifo(settings.data / "pipe.tif")
    error_message("pipe.tif", settings)


def _vrt(path: Path, source: Path) -> None:
    rasterio.shutil.copy(source, path.with_suffix(".vrt"), driver="VRT")
    path.with_suffix(".vrt").replace(path)


def _warped_vrt(path: Path, source: Path) -> None:
    with rasterio.open(source) as dataset, WarpedVRT(dataset) as view:
        rasterio.shutil.copy(view, path.with_suffix(".vrt"), driver="VRT")
    path.with_suffix(".vrt").replace(path)


@pytest.mark.parametrize("name", ["fake.tif", "fake.vrt"])
@pytest.mark.parametrize("make", [_vrt, _warped_vrt])
def test_vrt_with_any_name_is_refused(make, name: str, settings: Settings, tmp_path: Path) -> None:
    make(settings.data / name, tmp_path / "secret.tif")
    with rasterio.open(settings.data / name) as dataset:
        assert dataset.driver == "VRT"
    assert "only GeoTIFFs" in error_message(name, settings)


@pytest.mark.parametrize("driver", ["ENVI", "HFA", "GTI"])
def test_other_formats_are_refused(driver: str, settings: Settings) -> None:
    if driver == "GTI":
        (settings.data / "other.tif").write_text("<GDALTileIndexDataset><IndexDataset>a</IndexDataset>")
    else:
        rasterio.shutil.copy(settings.data / "a.tif", settings.data / "other.tif", driver=driver)
    assert "only GeoTIFFs" in error_message("other.tif", settings)


def test_sidecar_files_written_by_gdal_are_accepted(settings: Settings) -> None:
    for name in ("a.tif", "basins/b.tif"):
        shutil.copy(settings.data / "a.tif", settings.data / f"{name}.ovr")
        shutil.copy(settings.data / "a.tif", settings.data / f"{name}.msk")
        (settings.data / f"{name}.aux.xml").write_text("<PAMDataset><Metadata/></PAMDataset>")
        resolve_raster(name, settings)


@pytest.mark.parametrize("side", ["a.tif.ovr", "a.tif.msk", "a.tif.aux.xml", "A.TIF.OVR", "a.tif.ovr.msk"])
@pytest.mark.parametrize("how", ["a VRT", "a link", "a folder"])
def test_unsafe_sidecar_file_is_refused(side: str, how: str, settings: Settings, tmp_path: Path) -> None:
    if side == "a.tif.ovr.msk":
        shutil.copy(settings.data / "a.tif", settings.data / "a.tif.ovr")
    if how == "a VRT":
        _vrt(settings.data / side, tmp_path / "secret.tif")
    elif how == "a link":
        (settings.data / side).symlink_to(tmp_path / "secret.tif")
    else:
        (settings.data / side).mkdir()
    assert side in error_message("a.tif", settings)


@pytest.mark.parametrize("domain", ["OVERVIEWS", "overviews", "GEOLOCATION"])
def test_file_reference_in_tags_is_refused(domain: str, settings: Settings, tmp_path: Path) -> None:
    """GDAL would read overviews from the file or URL in such a tag."""
    with rasterio.open(settings.data / "a.tif", "r+", IGNORE_COG_LAYOUT_BREAK="YES") as dataset:
        dataset.update_tags(ns=domain, OVERVIEW_FILE=str(tmp_path / "secret.tif"))
    assert "refer to further files" in error_message("a.tif", settings)


def test_escaped_file_reference_in_sidecar_is_refused(settings: Settings, tmp_path: Path) -> None:
    item = f'<MDI key="OVERVIEW_FILE">{tmp_path}/secret.tif</MDI>'
    (settings.data / "a.tif.aux.xml").write_text(
        f'<PAMDataset><Metadata domain="&#79;VERVIEWS">{item}</Metadata></PAMDataset>'
    )
    assert "refers to further files" in error_message("a.tif", settings)


REFUSING = """
import sys
from pathlib import Path
from talud.serving.raster_paths import confine_gdal

folder = Path(sys.argv[1])
confine_gdal(warping=len(sys.argv) == 2)
import rasterio
from rasterio.errors import RasterioIOError

def refused(*names):
    for name in names:
        try:
            rasterio.open(name if ":" in name else folder / name)
            sys.exit(f"{name} was opened")
        except RasterioIOError:
            pass

refused("fake.img", "NETCDF:a.nc", "/vsicurl/http://127.0.0.1:9/a.tif", "https://localhost/a.tif")
"""
FREE = """
import sys
from pathlib import Path
from talud.products.prediction import predict
from talud.engine.runtime import Model

predict(Model.load(Path(sys.argv[2])), Path(sys.argv[1]) / "a.tif", Path(sys.argv[1]) / sys.argv[3])
"""
MAPPING = f"""{REFUSING}
refused("fake.tif", "fake.png")
{FREE}"""
PICTURING = f"""{REFUSING}
from rio_tiler.io import Reader

with Reader(folder / "a.tif") as reader:
    picture = reader.preview(indexes=1, max_size=64)
    picture.rescale(((0, 250),))
    assert picture.render(img_format="PNG").startswith(b"\\x89PNG")
    tile = next(iter(reader.tms.tiles(*reader.get_geographic_bounds("EPSG:4326"), 14)))
    assert reader.tile(tile.x, tile.y, tile.z, indexes=1).mask.any()
import subprocess
subprocess.run([sys.executable, "-c", "from talud.serving.raster_paths import confine_gdal as c; c()"], check=True)
"""


def run_confined(
    code: str, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("GDAL_SKIP", "OGR_SKIP")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=variables | (environment or {}), capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.slow
def test_confined_gdal_opens_only_geotiffs_and_makes_equal_maps(settings: Settings, tiny_model: Path) -> None:
    raster = settings.data / "a.tif"
    _vrt(settings.data / "fake.tif", raster)
    _warped_vrt(settings.data / "fake.png", raster)
    rasterio.shutil.copy(raster, settings.data / "fake.img", driver="HFA")
    for code, name in ((MAPPING, "map"), (FREE, "free")):
        done = run_confined(code, str(settings.data), str(tiny_model), name)
        assert (done.returncode, done.stderr) == (0, "")
    made, free = (
        {path.name: path.read_bytes() for path in (settings.data / name).iterdir()} for name in ("map", "free")
    )
    assert made.keys() == free.keys()
    assert {name for name in made if made[name] != free[name]} <= {"timings.json"}


@pytest.mark.slow
def test_confined_process_renders_tiles(settings: Settings) -> None:
    rasterio.shutil.copy(settings.data / "a.tif", settings.data / "fake.img", driver="HFA")
    done = run_confined(PICTURING, str(settings.data))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_confining_after_import_of_pyogrio_is_refused() -> None:
    late = "import pyogrio; from talud.serving.raster_paths import confine_gdal; confine_gdal()"
    assert "start the service in a separate process" in run_confined(late).stderr


@pytest.mark.slow
def test_confining_ignores_gdal_skip_of_environment() -> None:
    code = "from talud.serving.raster_paths import confine_gdal; confine_gdal()"
    done = run_confined(code, environment={"GDAL_SKIP": "PNG"})
    assert done.returncode == 0
    assert "sets GDAL_SKIP, which talud ignores" in done.stderr
