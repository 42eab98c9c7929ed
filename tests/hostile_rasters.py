"""Rasters of users for a model of red, green and blue: valid, odd and damaged."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.errors import NotGeoreferencedWarning
from rasterio.vrt import WarpedVRT

from hostile_bytes import cut, flipped
from stack_files import RGB, noise, write_stack

Make = Callable[[Path, np.random.Generator], str]  # a folder to write in, and chance → what is named to talud

NORTH_UP = Affine(12.5, 0, 400_000, 0, -12.5, 650_000)
UTM = "EPSG:32618"


@dataclass(frozen=True)
class Written:
    """GeoTIFF written by rasterio, with changes to a valid one."""

    shape: tuple[int, int] = (20, 28)
    dtype: str = "float32"
    names: Sequence[str | None] = RGB
    crs: str | None = UTM
    transform: Affine | None = NORTH_UP
    nodata: float | None = None
    values: Callable[[NDArray[np.float64]], Any] | None = None
    scales: Sequence[float] | None = None
    offsets: Sequence[float] | None = None
    units: Sequence[str] | None = None
    tags: Mapping[str, str] | None = None
    mask: NDArray[np.uint8] | None = None
    profile: Mapping[str, Any] | None = None
    after: Callable[[Any], object] | None = None

    def __call__(self, folder: Path, chance: np.random.Generator) -> str:
        path = folder / "stack.tif"
        values = noise(*self.shape, bands=len(self.names), seed=int(chance.integers(2**31))).astype(np.float64)
        if self.values:
            changed = self.values(values)
            values = values if changed is None else changed
        form = {"driver": "GTiff", "dtype": self.dtype, "count": len(self.names), "nodata": self.nodata}
        place = {"height": self.shape[0], "width": self.shape[1], "crs": self.crs, "transform": self.transform}
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with np.errstate(all="ignore"), rasterio.open(path, "w", **form, **place, **(self.profile or {})) as dataset:
            if self.dtype.startswith("u") and values.min() >= 0:
                values = np.minimum(values, np.iinfo(self.dtype).max)
            dataset.write(values.astype(self.dtype))
            for index, name in enumerate(self.names, start=1):
                if name is not None:
                    dataset.set_band_description(index, name)
            if self.scales:
                dataset.scales = self.scales
            if self.offsets:
                dataset.offsets = self.offsets
            if self.units:
                dataset.units = self.units
            if self.mask is not None:
                dataset.write_mask(self.mask)
            dataset.update_tags(**(self.tags or {}))
            if self.after:
                self.after(dataset)
        return str(path)


def put(band: int | slice, rows: slice, value: float) -> Callable[[NDArray[np.float64]], None]:
    def change(values: NDArray[np.float64]) -> None:
        values[band, rows] = value

    return change


def half_mask() -> NDArray[np.uint8]:
    mask = np.full((20, 28), 255, np.uint8)
    mask[:, :9] = 0
    return mask


def with_alpha(dataset: Any) -> None:
    from rasterio.enums import ColorInterp

    alpha = np.full((20, 28), 255, dataset.dtypes[0])
    alpha[:7] = 0
    dataset.write(alpha, 4)
    dataset.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)


def with_points(dataset: Any) -> None:
    points = [GroundControlPoint(r, c, 4e5 + 12.5 * c, 6.5e5 - 12.5 * r) for r, c in ((0, 0), (0, 28), (20, 0))]
    dataset.gcps = points, rasterio.CRS.from_epsg(32618)


def ground(*numbers: float) -> Affine:
    return Affine(*numbers)


def vrt(source: str, **changes: str) -> Make:
    """Write a VRT by hand; {folder} is the folder of a valid stack.tif."""
    texts = {
        "size": 'rasterXSize="28" rasterYSize="20"',
        "crs": UTM,
        "transform": "400000, 12.5, 0, 650000, 0, -12.5",
        "bands": "Float32",
        "source": "SimpleSource",
        "number": "",
        "more": "",
        "after": "",
    } | changes

    def make(folder: Path, chance: np.random.Generator) -> str:
        Written()(folder, chance)
        bands = "".join(
            f'<VRTRasterBand dataType="{texts["bands"]}" band="{index}"><Description>{name}</Description>'
            f"<{texts['source']}><SourceFilename>{source.format(folder=folder)}</SourceFilename>"
            f"<SourceBand>{texts['number'] or index}</SourceBand>{texts['more']}</{texts['source']}>"
            f"{texts['after']}</VRTRasterBand>"
            for index, name in enumerate(RGB, start=1)
        )
        path = folder / "stack.vrt"
        path.write_text(
            f"<VRTDataset {texts['size']}><SRS>{texts['crs']}</SRS>"
            f"<GeoTransform>{texts['transform']}</GeoTransform>{bands}</VRTDataset>"
        )
        return str(path)

    return make


def enlarged(height: int, width: int) -> Make:
    """Stretch a small raster to a huge one."""
    equal_area = "EPSG:6933"  # of one scale everywhere
    whole = '<SrcRect xOff="0" yOff="0" xSize="28" ySize="20"/>'
    there = f'<DstRect xOff="0" yOff="0" xSize="{width}" ySize="{height}"/>'
    size = f'rasterXSize="{width}" rasterYSize="{height}"'
    return vrt("{folder}/stack.tif", size=size, crs=equal_area, more=whole + there)


def complex_integers(folder: Path, chance: np.random.Generator) -> str:
    path = vrt("{folder}/stack.tif", bands="CInt16")(folder, chance)
    rasterio.shutil.copy(path, folder / "complex.tif", driver="GTiff")
    return str(folder / "complex.tif")


def warped(folder: Path, chance: np.random.Generator) -> str:
    with rasterio.open(Written()(folder, chance)) as dataset, WarpedVRT(dataset) as view:
        rasterio.shutil.copy(view, folder / "warped.vrt", driver="VRT")
    return str(folder / "warped.vrt")


def python_in_a_vrt(folder: Path, chance: np.random.Generator) -> str:
    """Write a VRT whose first band runs Python code, which would create a file."""
    path = Path(vrt("{folder}/stack.tif")(folder, chance))
    code = (
        '<VRTRasterBand subClass="VRTDerivedRasterBand" dataType="Float32" band="1">'
        "<PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>"
        f"<PixelFunctionCode><![CDATA[def f(*a, **k): open('{folder}/ran', 'w')]]></PixelFunctionCode>"
    )
    path.write_text(path.read_text().replace('<VRTRasterBand dataType="Float32" band="1">', code))
    return str(path)


def named(name: bytes) -> Make:
    def make(folder: Path, chance: np.random.Generator) -> str:
        path = Path(Written()(folder, chance))
        new = folder / name.decode("utf-8", "surrogateescape")
        path.rename(new)
        return str(new)

    return make


def content(content: bytes, name: str = "stack.tif") -> Make:
    def make(folder: Path, chance: np.random.Generator) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return make


def a_folder(folder: Path, chance: np.random.Generator) -> str:
    (folder / "stack.tif").mkdir()
    return str(folder / "stack.tif")


def of_driver(driver: str, name: str, bare: bool = False) -> Make:
    def make(folder: Path, chance: np.random.Generator) -> str:
        source = Written(dtype="uint8")(folder, chance)
        rasterio.shutil.copy(source, folder / name, driver=driver)
        if bare:
            (folder / f"{name}.aux.xml").unlink()
        return str(folder / name)

    return make


def stack_with_holes(folder: Path, chance: np.random.Generator) -> str:
    values = noise(20, 28, seed=int(chance.integers(2**31)))
    values[0, 3:9, 3:9], values[1, 15:, :] = np.nan, np.nan
    return str(write_stack(folder / "stack.tif", values, units=("DN", "DN", "DN"), tags={"TALUD_AREA": "somewhere"}))


def a_bomb(folder: Path, chance: np.random.Generator) -> str:
    """Write kilobytes of file that need gigabytes: all of a band is one block."""
    form = {"driver": "GTiff", "dtype": "float32", "count": 3, "height": 20_000, "width": 30_000, "blockysize": 20_000}
    path = folder / "stack.tif"
    with rasterio.open(path, "w", **form, crs=UTM, transform=NORTH_UP, sparse_ok=True, compress="deflate") as dataset:
        dataset.descriptions = RGB
    return str(path)


NAN, INF = math.nan, math.inf
MAPPED: dict[str, Make] = {
    "as it should be": Written(),
    "a stack with holes": stack_with_holes,
    "another order of bands": Written(names=("blue", "red", "green")),
    "more bands": Written(names=("extra", "blue", None, "red", "slope", "green")),
    **{f"of {dtype}": Written(dtype=dtype) for dtype in ("uint8", "uint16", "int16", "uint32", "int32", "float64")},
    **{f"of {dtype}": Written(dtype=dtype) for dtype in ("int64", "uint64")},
    "of int8": Written(dtype="int8", values=lambda values: values / 2),
    "1 × 1": Written(shape=(1, 1)),
    "1 × 33": Written(shape=(1, 33)),
    "33 × 1": Written(shape=(33, 1)),
    "7 × 4000": Written(shape=(7, 4000)),
    "4000 × 7": Written(shape=(4000, 7)),
    "all NaN": Written(values=put(slice(None), slice(None), NAN)),
    "all nodata": Written(values=put(slice(None), slice(None), 9), nodata=9),
    "one band all NaN": Written(values=put(1, slice(None), NAN)),
    "one valid pixel": Written(values=lambda v: np.where(np.arange(560).reshape(20, 28) == 300, v, NAN)),
    "a row of NaN": Written(values=put(2, slice(4, 5), NAN)),
    "infinite in one pixel": Written(values=lambda v: np.where(np.arange(560).reshape(20, 28) == 3, INF, v)),
    "minus infinite in one pixel": Written(values=lambda v: np.where(np.arange(560).reshape(20, 28) == 3, -INF, v)),
    "nodata infinite": Written(values=put(0, slice(0, 3), INF), nodata=INF),
    "nodata minus infinite": Written(values=put(0, slice(0, 3), -INF), nodata=-INF),
    "nodata the largest float": Written(
        values=put(0, slice(0, 3), 3.4028234663852886e38), nodata=3.4028234663852886e38
    ),
    "nodata the lowest double": Written(
        dtype="float64", values=put(0, slice(0, 3), -1.7976931348623157e308), nodata=-1.7976931348623157e308
    ),
    "nodata -9999": Written(values=put(1, slice(10, 20), -9999), nodata=-9999),
    "nodata among the values": Written(dtype="uint8", nodata=100),
    "nodata 0 and zeros": Written(dtype="uint8", values=put(0, slice(0, 5), 0), nodata=0),
    "a mask": Written(mask=half_mask()),
    "a mask of uint8": Written(dtype="uint8", mask=half_mask()),
    "an alpha band": Written(dtype="uint8", names=(*RGB, None), after=with_alpha),
    "a scale": Written(dtype="uint16", values=lambda v: v * 100, scales=(0.01,) * 3),
    "a scale and an offset": Written(
        dtype="int16", values=lambda v: v * 10 - 1000, scales=(0.1,) * 3, offsets=(100.0,) * 3
    ),
    "a scale of one band alone": Written(
        dtype="uint16", values=lambda v: v * [[[1]], [[10]], [[1]]], scales=(1, 0.1, 1)
    ),
    "a negative scale": Written(scales=(-1.0, 1.0, 1.0), values=lambda v: v * [[[-1]], [[1]], [[1]]]),
    "a scale of nought": Written(scales=(0.0, 1.0, 1.0)),
    "a scale and nodata": Written(dtype="uint16", values=put(0, slice(0, 4), 7), scales=(0.5,) * 3, nodata=7),
    "a scale of NaN": Written(scales=(NAN, 1.0, 1.0)),
    "every value the same": Written(values=put(slice(None), slice(None), 120)),
    "units in other letters": Written(units=("dn", "DN", "")),
    "in blocks of 16": Written(profile={"tiled": True, "blockxsize": 16, "blockysize": 16}),
    "pixel by pixel": Written(profile={"interleave": "pixel", "compress": "lzw"}),
    "big-endian": Written(profile={"endianness": "big"}),
    "BigTIFF": Written(profile={"bigtiff": "yes"}),
    "sparse": Written(profile={"sparse_ok": True, "tiled": True}, values=put(0, slice(0, 3), 0)),
    "tags of a map of elsewhere": Written(tags={"TALUD_AREA": "Ñuble / " + "x" * 3000, "TALUD_EVENT": "never\nat all"}),
    "a VRT": vrt("{folder}/stack.tif"),
    "a VRT with nodata that the type cannot hold": vrt(
        "{folder}/stack.tif", bands="Byte", after="<NoDataValue>-9999.5</NoDataValue>"
    ),
    "a warped VRT": warped,
    "a name with an accent": named("cañón de la Liboriana.tif".encode()),
    "a name with a line break": named(b"two\nlines.tif"),
    "a PNG": of_driver("PNG", "stack.png"),
    "a JPEG": of_driver("JPEG", "stack.jpg"),
    "1,000 bands": Written(shape=(3, 5), names=(*RGB, *(None for _ in range(997))), dtype="uint8"),
}
REFUSED: dict[str, Make] = {
    "a name in Latin-1": named("cañón.tif".encode("latin-1")),
    "of complex64": Written(dtype="complex64"),
    "of complex128": Written(dtype="complex128"),
    "of complex integers": complex_integers,
    "one band": Written(names=("red",)),
    "no names": Written(names=(None, None, None)),
    "one name missing": Written(names=("red", None, "blue")),
    "names in capitals": Written(names=("Red", "Green", "Blue")),
    "names with blanks": Written(names=("red ", "green", "blue")),
    "a name twice": Written(names=("red", "green", "blue", "red")),
    "10,000 bands": Written(shape=(3, 5), names=(*RGB, *(None for _ in range(9997))), dtype="uint8"),
    "10,000 names": Written(shape=(3, 5), names=tuple(f"band {n}" for n in range(10_000)), dtype="uint8"),
    "a name of a megabyte": Written(names=("red", "green", "b" * 10**6)),
    "names with line breaks": Written(names=("red\nred", "gr\teen", "bl\rue")),
    "turned": Written(transform=NORTH_UP * Affine.rotation(30)),
    "turned a little": Written(transform=ground(12.5, 0.001, 4e5, 0, -12.5, 6.5e5)),
    "south up": Written(transform=ground(12.5, 0, 4e5, 0, 12.5, 6.5e5)),
    "east to west": Written(transform=ground(-12.5, 0, 4e5, 0, -12.5, 6.5e5)),
    "no transform": Written(transform=None),
    "no transform and no CRS": Written(transform=None, crs=None),
    "pixels without size": Written(transform=ground(0, 0, 4e5, 0, -12.5, 6.5e5)),
    "pixels of NaN": Written(transform=ground(NAN, 0, 4e5, 0, NAN, 6.5e5)),
    "pixels of infinity": Written(transform=ground(INF, 0, 4e5, 0, -INF, 6.5e5)),
    "an origin of NaN": Written(transform=ground(12.5, 0, NAN, 0, -12.5, NAN)),
    "an origin of infinity": Written(transform=ground(12.5, 0, INF, 0, -12.5, -INF)),
    "an origin off the world": Written(transform=ground(12.5, 0, 1e15, 0, -12.5, 1e15)),
    "an origin where float64 has no metres": Written(transform=ground(12.5, 0, 4e5, 0, -12.5, 1e87)),
    "an origin far out": Written(transform=ground(12.5, 0, 4e5, 0, -12.5, -2e9)),
    "pixels of 10 m": Written(transform=ground(10, 0, 4e5, 0, -10, 6.5e5)),
    "oblong pixels": Written(transform=ground(12.5, 0, 4e5, 0, -13, 6.5e5)),
    "longitude and latitude": Written(crs="EPSG:4326", transform=ground(0.0001, 0, -76, 0, -0.0001, 6)),
    "degrees that say 12.5": Written(crs="EPSG:4326", transform=ground(12.5, 0, -76, 0, -12.5, 6)),
    "no CRS": Written(crs=None),
    "a local CRS": Written(crs='LOCAL_CS["here",UNIT["metre",1]]'),
    "geocentric": Written(crs="EPSG:4978"),
    "Web Mercator in the north": Written(crs="EPSG:3857", transform=ground(12.5, 0, 8e5, 0, -12.5, 5_621_521)),
    "feet": Written(crs="EPSG:2263"),
    "points instead of a transform": Written(transform=None, crs=None, after=with_points),
    "all infinite": Written(values=put(slice(None), slice(None), INF)),
    "undeclared nodata": Written(values=put(0, slice(0, 10), -9999)),
    "undeclared huge nodata": Written(values=put(0, slice(0, 10), -3.4e38)),
    "beyond float32": Written(dtype="float64", values=put(0, slice(0, 10), 1e300)),
    "16-bit values": Written(dtype="uint16", values=lambda v: v * 200),
    "a huge scale": Written(scales=(1e300, 1.0, 1.0)),
    "an infinite offset": Written(offsets=(INF, 0.0, 0.0)),
    "another unit": Written(units=("reflectance",) * 3),
    "a VRT to a missing file": vrt("{folder}/missing.tif"),
    "a VRT to itself": vrt("{folder}/stack.vrt"),
    "a VRT to a text": vrt("/etc/hostname"),
    "a VRT to a folder": vrt("{folder}"),
    "a VRT to a missing band": vrt("{folder}/stack.tif", number="9"),
    "a VRT of a million pixels a side": enlarged(10**6, 10**6),
    "a VRT of two milliard columns": enlarged(1, 2**31 - 1),
    "a VRT of two milliard rows": enlarged(2**31 - 1, 1),
    "a VRT without size": vrt("{folder}/stack.tif", size=""),
    "a VRT of negative size": vrt("{folder}/stack.tif", size='rasterXSize="-5" rasterYSize="3"'),
    "a VRT of an unknown CRS": vrt("{folder}/stack.tif", crs="nowhere"),
    "a VRT of another type": vrt("{folder}/stack.tif", bands="Float99"),
    "a VRT with NaN in its transform": vrt("{folder}/stack.tif", transform="nan, nan, 0, nan, 0, nan"),
    "empty": content(b""),
    "text": content(b"red green blue"),
    "the head of a TIFF alone": content(b"II*\0\x08\0\0\0"),
    "a TIFF that leads to itself": content(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "zeros": content(bytes(10_000)),
    "XML": content(b"<VRTDataset/>", "stack.vrt"),
    "XML without an end": content(b"<VRTDataset rasterXSize='3'", "stack.vrt"),
    "entities of XML": content(
        b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><VRTDataset rasterXSize="&b;"/>', "stack.vrt"
    ),
    "a folder": a_folder,
    "nothing": lambda folder, chance: str(folder / "stack.tif"),
    "a name of a null device": lambda folder, chance: "/dev/null",
    "a name with a zero byte's worth of nonsense": lambda folder, chance: "\x01\x02:::/vsizip//",
    "a missing archive": lambda folder, chance: f"/vsizip/{folder}/missing.zip/stack.tif",
    "a connection string": lambda folder, chance: "PG:dbname=none host=127.0.0.1 port=1",
    "a PNG without what lies beside it": of_driver("PNG", "stack.png", bare=True),
}
EITHER: dict[str, Make] = {
    "Python in a VRT": python_in_a_vrt,
    "blocks as large as the raster": a_bomb,
}
BASES: dict[str, Make] = {
    "plain": Written(),
    "compressed": stack_with_holes,
    "scaled": Written(
        dtype="int16",
        values=lambda v: v * 10,
        scales=(0.1,) * 3,
        nodata=-5,
        mask=None,
        units=("DN",) * 3,
        tags={"TALUD_AREA": "somewhere"},
        profile={"compress": "deflate", "tiled": True, "blockxsize": 16, "blockysize": 16},
    ),
    "masked": Written(mask=half_mask(), profile={"compress": "lzw", "interleave": "pixel"}),
}


def damaged(base: str, way: str) -> Make:
    """Write a raster whose file is truncated or has changed bits."""

    def make(folder: Path, chance: np.random.Generator) -> str:
        path = Path(BASES[base](folder, chance))
        path.write_bytes({"cut": cut, "flipped": flipped}[way](path.read_bytes(), chance))
        return str(path)

    return make
