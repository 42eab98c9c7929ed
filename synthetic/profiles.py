"""Profiles of the synthetic basins."""

from __future__ import annotations

from dataclasses import dataclass

PIXEL_METRES = 12.5
EPSG = 32618  # WGS 84 / UTM 18N: Colombia

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class BasinProfile:
    """Location, light, land cover, radar and landslides of a basin.

    Attributes:
        name: name of the basin and of its folder.
        corner: easting and northing of the upper left corner, in metres.
        valley_floor: elevation of the lowest point, in metres.
        steepness: U / K of the stream power law, uplift over erodibility.
        repose: mean tangent of the angle of repose.
        farmland: share of the area that is farmland.
        bare: share of fields without vegetation.
        forest, pasture, soil: reflectance in red, green and blue.
        sun_azimuth, sun_elevation: position of the sun in degrees.
        haze: path reflectance in the valleys in red, green and blue.
        gain: gain of the optical sensor in red, green and blue.
        cloud: share of the area under cloud.
        sar_gain: gain of the radar in dB.
        look_azimuth, incidence: direction from the ground to the radar, in degrees from north and from the vertical.
        slides: number of landslides.
        slide_length, slide_width: median length and width in metres.
        slide_vv: mean change of VV in landslides, in dB.
        old_scars: number of earlier landslides, bare but unchanged by the event.
    """

    name: str
    corner: tuple[float, float]
    valley_floor: float
    steepness: float
    repose: float
    farmland: float
    bare: float
    forest: Colour
    pasture: Colour
    soil: Colour
    sun_azimuth: float
    sun_elevation: float
    haze: Colour
    gain: Colour
    cloud: float
    sar_gain: float
    look_azimuth: float
    incidence: float
    slides: int
    slide_length: float
    slide_width: float
    slide_vv: float
    old_scars: int


ARGELIA = BasinProfile(
    name="synthetic_argelia",
    corner=(350_000.0, 640_000.0),
    valley_floor=1180.0,
    steepness=56.0,
    repose=0.70,
    farmland=0.30,
    bare=0.11,
    forest=(0.030, 0.052, 0.026),
    pasture=(0.085, 0.112, 0.050),
    soil=(0.205, 0.150, 0.098),
    sun_azimuth=135.0,
    sun_elevation=52.0,
    haze=(0.010, 0.015, 0.026),
    gain=(1.0, 1.0, 1.0),
    cloud=0.015,
    sar_gain=0.0,
    look_azimuth=102.0,
    incidence=39.0,
    slides=160,
    slide_length=420.0,
    slide_width=95.0,
    slide_vv=-4.5,
    old_scars=24,
)

LIBORIANA = BasinProfile(
    name="synthetic_liboriana",
    corner=(380_000.0, 664_000.0),
    valley_floor=1320.0,
    steepness=62.0,
    repose=0.75,
    farmland=0.36,
    bare=0.10,
    forest=(0.040, 0.060, 0.030),
    pasture=(0.110, 0.117, 0.060),
    soil=(0.185, 0.136, 0.092),
    sun_azimuth=58.0,
    sun_elevation=46.0,
    haze=(0.022, 0.0285, 0.044),
    gain=(1.06, 1.04, 1.02),
    cloud=0.16,
    sar_gain=3.0,
    look_azimuth=102.0,
    incidence=34.0,
    slides=210,
    slide_length=300.0,
    slide_width=68.0,
    slide_vv=-3.0,
    old_scars=40,
)

BASINS = (ARGELIA, LIBORIANA)
