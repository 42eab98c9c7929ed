"""params.yaml as one frozen object: every choice of a project, checked once."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from annotated_types import Len
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from talud.bands import Group, band
from talud.errors import ParamsError, TaludWarning

SlopeMethod = Literal["zevenbergen_thorne", "horn"]
CurvatureKind = Literal["profile", "contour", "total"]
SarUnit = Literal["amplitude", "power", "db"]
Segmentation = Literal["felzenszwalb", "slic"]
Source = Literal["optical", "dtm", "sar_pre", "sar_post", "inventory", "boundary", "cloud", "sar_mask"]


def _checked_name(name: str) -> str:
    """A name becomes a file, a DVC stage and a registered model, so it holds nothing that one of them would refuse."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ValueError(f"the name '{name}' may hold letters, digits, _ and -, and begins with a letter or digit")
    return name


Name = Annotated[str, AfterValidator(_checked_name)]


# Keys of an area that say something of its rasters and polygons.
_OF_RASTERS = (
    "files",
    "optical_bands",
    "optical_scale",
    "optical_offset",
    "sar_bands",
    "sar_unit",
    "crs",
    "bounds",
    "inventory_filter",
)


_TEXT_TAG = "tag:yaml.org,2002:str"
_MERGE_TAG = "tag:yaml.org,2002:merge"
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+|0x[0-9a-fA-F]+")  # of YAML 1.2
_KINDS = {  # of keys that are no text, by their tag in YAML 1.1
    "tag:yaml.org,2002:bool": "true or false",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:timestamp": "a date",
}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Acquired(_Frozen):
    """The dates on which an area's images were taken."""

    optical: date | None = None
    sar_pre: date | None = None
    sar_post: date | None = None


class PatchData(_Frozen):
    """Images that were cut into squares beforehand, and their masks: an area's source in place of rasters."""

    images: str = Field("images", description="a folder below the area's, or a pattern such as img/image_*.h5")
    masks: str = Field("masks", description="likewise; image_12.h5 belongs to mask_12.h5, 12.png to 12.png")
    index: str | None = Field(
        None, description="a table (CSV) whose first column names the patches that count; default: all count"
    )
    where: str | None = Field(None, description="which of its rows count, as an OGR SQL where clause")
    bands: Annotated[dict[str, Annotated[int, Field(ge=1)]], Len(1)] = Field(
        {"red": 1, "green": 2, "blue": 3}, description="band name → number of the channel in an image"
    )
    pixel_size: float = Field(10.0, gt=0, allow_inf_nan=False, description="side of a pixel in metres")

    @model_validator(mode="after")
    def _clause_has_its_table(self) -> Self:
        if self.where and not self.index:
            raise ValueError("where chooses rows of the table that index names, and there is none")
        return self

    @model_validator(mode="after")
    def _bands_are_optical(self) -> Self:
        _refuse_bands_of_others("bands", self.bands)
        return self


class Area(_Frozen):
    """A basin with its sources."""

    role: Literal["training", "gate", "transfer"] = Field(
        description="training; gate: labelled, decides promotion; transfer: labelled or not, never decides"
    )
    folder: str = Field(description="where its sources lie: optical.*, dtm.*, sar_pre.*, inventory.* and so on")
    files: dict[Source, str] = Field(
        {}, description="a source's own file, relative to the folder, where its name differs"
    )
    optical_bands: dict[str, Annotated[int, Field(ge=1)]] = Field(
        {"red": 1, "green": 2, "blue": 3}, description="band name → band number in the optical source"
    )
    optical_scale: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="from the image's numbers to reflectance; default: the file's",
    )
    optical_offset: float | None = Field(
        None, allow_inf_nan=False, description="added after that; for Sentinel-2 since January 2022 -0.1"
    )
    sar_bands: dict[Literal["vv", "vh"], Annotated[int, Field(ge=1)]] = Field(
        {"vv": 1}, description="polarisation → band number in sar_pre and sar_post"
    )
    sar_unit: SarUnit | None = Field(None, description="of the SAR sources; default: what their tags say")
    crs: str | None = Field(None, description="of the stack; default: that of the first source present")
    bounds: tuple[float, float, float, float] | None = Field(
        None,
        description="left, bottom, right, top in the CRS of the stack, which holds the pixels whose centres lie in it; "
        "default: the first source's extent",
    )
    inventory_filter: str | None = Field(None, description="which features count, as an OGR SQL where clause")
    acquired: Acquired = Acquired()
    event: date | None = Field(None, description="when the landslides happened")
    patches: PatchData | None = Field(None, description="in place of rasters: images cut into squares, and their masks")

    @classmethod
    def given(cls, **fields: object) -> Self:
        """An area from values given by hand.

        Raises:
            ParamsError: a value is not usable.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ParamsError(_explain(error, cls)) from error

    @model_validator(mode="after")
    def _optical_names_are_optical(self) -> Self:
        _refuse_bands_of_others("optical_bands", self.optical_bands)
        return self

    @model_validator(mode="after")
    def _patches_stand_alone(self) -> Self:
        if self.patches:
            fields = type(self).model_fields
            said = [name for name in _OF_RASTERS if getattr(self, name) != fields[name].get_default()]
            if said:
                raise ValueError(f"patches stand in place of rasters, to which {', '.join(said)} belong")
            if self.acquired.sar_pre or self.acquired.sar_post:
                raise ValueError("acquired: patches have no SAR scenes")
        return self

    @model_validator(mode="after")
    def _dates_in_order(self) -> Self:
        pre, post = self.acquired.sar_pre, self.acquired.sar_post
        if self.event and pre and pre >= self.event:
            raise ValueError(f"sar_pre was acquired on {pre}, not before the event of {self.event}")
        for name, day in (("sar_post", post), ("optical", self.acquired.optical)):
            if self.event and day and day < self.event:
                raise ValueError(f"{name} was acquired on {day}, before the event of {self.event}")
        if pre and post and pre >= post:
            raise ValueError(f"sar_pre was acquired on {pre}, not before sar_post on {post}")
        return self


class StackOptions(_Frozen):
    """How the sources of an area become its stack."""

    resolution: float = Field(12.5, gt=0, description="side of a pixel in metres")
    origin: Literal["source"] | tuple[FiniteFloat, FiniteFloat] = Field(
        "source",
        description="of the grid, in the CRS of the stack: x and y of any pixel's corner; source: the pixels of the "
        "first source that has the stack's CRS and resolution, else corners on multiples of the resolution",
    )
    overlap: Literal["refuse", "allow"] = Field(
        "refuse", description="of areas with different roles, or of two training areas: pixels that lie in both"
    )
    slope: SlopeMethod = "zevenbergen_thorne"
    curvature: CurvatureKind = "profile"
    sar_unit: SarUnit = Field("db", description="the unit of the SAR bands in the stack")
    lee_window: int = Field(0, ge=0, description="side of the Lee speckle filter in SAR pixels, odd; 0 leaves speckle")
    inventory_rule: Literal["centre", "all_touched"] = Field(
        "centre", description="which pixels a polygon marks: those whose centre it holds, or all it touches"
    )

    @field_validator("origin", mode="before")
    @classmethod
    def _origin_is_a_corner(cls, origin: object) -> object:
        numbers = isinstance(origin, (list, tuple)) and all(type(one) in (int, float) for one in origin)
        if origin != "source" and not (numbers and len(origin) == 2):  # type: ignore[arg-type]
            raise ValueError(f"is {origin!r}; give source, or x and y of a pixel's corner, such as [500000, 4000000]")
        return origin

    @model_validator(mode="after")
    def _lee_window_is_odd(self) -> Self:
        if self.lee_window and self.lee_window % 2 == 0:
            raise ValueError(f"lee_window is {self.lee_window}, it must be odd or 0")
        return self


class SplitOptions(_Frozen):
    """How the training areas are split into blocks, and blocks into patches."""

    block: int = Field(128, gt=0, description="side of a spatial block in pixels; a block goes to one part whole")
    validation: float = Field(0.2, gt=0, lt=1, description="share of the blocks")
    test: float = Field(0.2, gt=0, lt=1, description="share of the blocks")
    guard: int = Field(0, ge=0, description="pixels left out along each block's border")
    patch: int = Field(64, gt=0, description="side of a patch in pixels")
    stride: int = Field(32, gt=0, description="from one training patch to the next, in pixels")
    empty_share: float = Field(0.3, ge=0, le=1, description="largest share of training patches without a landslide")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError("validation + test leave no block for training")
        if self.patch > self.block - 2 * self.guard:
            raise ValueError(f"a patch of {self.patch} pixels does not fit a block of {self.block} with its guard")
        return self


class Search(_Frozen):
    """Which hyperparameters a study tries, and how: in full, or by successive halving."""

    method: Literal["grid", "halving"] = Field(
        "grid", description="grid: every trial for all epochs; halving: the better ones go on, see first_epochs, factor"
    )
    filters: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Len(1)] = Field(description="of the first level")
    learning_rate: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Len(1)]
    batch_size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Len(1)]
    epochs: int = Field(ge=1, description="of a trial, at most")
    trials: int | None = Field(None, ge=1, description="of all combinations, drawn with the seed; default: all")
    patience: int | None = Field(None, ge=1, description="epochs without a higher validation F1 that end a trial")
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="of weights and order: each combination is tried with each; default: the project's seed"
    )
    first_epochs: int = Field(5, ge=1, description="halving: after which the first trials are left behind")
    factor: int = Field(3, ge=2, description="halving: 1/factor of the trials go on, for factor times as many epochs")
    failures: int = Field(5, ge=0, description="trials that may fail; with one more the study stops")

    @model_validator(mode="after")
    def _no_value_twice(self) -> Self:
        for name in ("filters", "learning_rate", "batch_size", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} holds a value twice: {', '.join(f'{value:g}' for value in values)}")
        return self


class DroppingOptions(_Frozen):
    """What a network is to do without at times: band groups and clouded pixels, dropped from training patches."""

    groups: dict[Group, Annotated[float, Field(ge=0, lt=1)]] = Field(
        {}, description="band group → probability that it is dropped from a patch, of which one is always left"
    )
    clouds: float = Field(
        0, ge=0, le=1, description="share of the patches that get a simulated cloud over their optical bands"
    )
    tolerance: float = Field(
        0.2, ge=0, le=1, description="most F1 that a subset of groups may lack to all of them, to be mapped with"
    )

    @model_validator(mode="after")
    def _groups_are_read(self) -> Self:
        if Group.SHADE in self.groups:
            raise ValueError(f"groups: no model reads '{Group.SHADE}'; name optical, terrain or sar")
        return self

    def optional(self, groups: Sequence[Group]) -> tuple[Group, ...]:
        """Those of a network's groups that may be absent at times; it learns to do without them."""
        if len(groups) < 2:
            return ()
        return tuple(group for group in groups if self.groups.get(group) or (group is Group.OPTICAL and self.clouds))


class Augmentation(_Frozen):
    """What is changed at random in a training patch, anew in each epoch; nothing by default but how it lies."""

    symmetries: bool = Field(True, description="turn and mirror (the dihedral group D4)")
    scale: float = Field(0.0, ge=0, lt=1, description="largest share of the side that is cut off; the rest is enlarged")
    gain: float = Field(0.0, ge=0, le=1, description="optical, SAR: standard deviation of the gain's logarithm")
    offset: float = Field(0.0, ge=0, le=2, description="optical, SAR: standard deviation, in deviations of the band")
    gamma: float = Field(0.0, ge=0, le=1, description="optical: standard deviation of the exponent's logarithm")
    haze: float = Field(0.0, ge=0, lt=1, description="optical: largest share of the signal that a veil takes")
    per_band: float = Field(0.6, ge=0, description="gain, offset and gamma of a band alone, as a share of the common")
    paste: float = Field(0.0, ge=0, le=1, description="share of patches that get another patch's landslides")


class Recipe(_Frozen):
    """How a network learns. The defaults are the study's, as far as it states them."""

    augmentation: Augmentation = Augmentation()
    loss: Literal["dice", "dice_cross_entropy", "tversky", "focal_tversky"] = "dice"
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="of the learning rate; cosine: half an epoch up to it, then down to a hundredth of it"
    )
    weight_decay: float = Field(0.0, ge=0, lt=1, description="of AdamW, in shares of the learning rate")
    averaging: float = Field(
        0.0, ge=0, lt=1, description="momentum of the moving average of the weights, which is kept; 0: none"
    )
    batch_normalisation: bool = Field(
        False, description="normalise after each convolution; in the exported network it is part of the convolution"
    )
    dropping: DroppingOptions = DroppingOptions()


class TrainingOptions(_Frozen):
    """What all trials of a study share: the network's depth, and how it is computed."""

    depth: int = Field(4, ge=1, le=6, description="poolings of the U-Net")
    rematerialise: bool = Field(
        False, description="compute blocks of the U-Net again in the backward pass: less memory, more time"
    )
    mixed_precision: Literal[False, "float16", "bfloat16"] = Field(
        False,
        description="compute in 16 bits, with float32 weights: float16 on a GPU, bfloat16 there or on a processor that "
        "has it (AVX512-BF16 or AMX), where it halves the time",
    )
    xla: Literal[False, "auto"] = Field(
        False, description="auto: compile the training step where Keras can; JAX always does"
    )
    calibrate: bool = Field(
        True, description="scale the logits of the exported model, so that its probabilities fit the validation blocks"
    )


class Promotion(_Frozen):
    """What a registered version must keep to become the champion, beyond what holds for every model."""

    resamples: int = Field(
        2000, ge=100, le=100_000, description="of the blocks, for the interval of a difference in F1"
    )
    megabytes: float | None = Field(500.0, gt=0, description="most that the ONNX file may have; null: no limit")
    seconds_per_megapixel: float | None = Field(
        None, gt=0, description="most that a million pixels may take on the CPU that registers; null: not measured"
    )
    require_skill: bool = Field(
        True, description="a champion must be better than calling everything, or nothing, a landslide"
    )


class Postprocessing(_Frozen):
    """What is done to probabilities beyond the threshold; by default nothing."""

    hysteresis_low: float | None = Field(
        None, ge=0, le=1, description="least probability of a pixel that touches a sure one; default: one threshold"
    )
    hysteresis_high: float | None = Field(
        None, gt=0, le=1, description="least probability of a sure pixel; default: the model's threshold"
    )
    minimum_mapping_unit: float = Field(0, ge=0, description="m² of the smallest landslide that is kept")
    segments: Literal["none", Segmentation] = Field(
        "none", description="segments of the optical image, whose mean probability is blended with the pixels'"
    )
    segment_scale: float = Field(
        30, gt=0, description="felzenszwalb: its scale, higher for larger segments; slic: pixels of a segment"
    )
    segment_weight: float = Field(1, gt=0, le=1, description="of a segment's mean; the rest is the pixel's own")
    slope_rule: float = Field(0, ge=0, le=90, description="degrees: landslides whose mean slope is less are dropped")

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        low, high = self.hysteresis_low, self.hysteresis_high
        if high is not None and low is None:
            raise ValueError("hysteresis_high needs hysteresis_low")
        if low is not None and high is not None and low > high:
            raise ValueError(f"hysteresis_low is {low:g}, hysteresis_high {high:g}; exchange them")
        return self

    @property
    def changes(self) -> dict[str, float | str]:
        """The options that are not the default, by name."""
        return self.model_dump(exclude_defaults=True)


class Params(_Frozen):
    """Everything that params.yaml says."""

    seed: int = Field(ge=0)
    areas: dict[Name, Area]
    band_sets: dict[Name, Annotated[tuple[str, ...], Len(1)]]
    stack: StackOptions
    split: SplitOptions
    training: TrainingOptions
    recipe: str = Field("study", description="the name of one of `recipes`")
    recipes: dict[Name, Recipe] = {"study": Recipe()}
    reference: str | None = Field(
        None, description="the recipe that the chosen one is compared with: the best trial is trained once more with it"
    )
    search: str = Field(description="the name of one of `searches`")
    searches: dict[Name, Search]
    promotion: Promotion = Promotion()
    postprocessing: Postprocessing = Postprocessing()

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        if self.search not in self.searches:
            raise ValueError(f"search: '{self.search}' is none of the searches: {', '.join(self.searches)}")
        if self.recipe not in self.recipes and "recipe" not in self.model_fields_set:
            raise ValueError(f"the key 'recipe' is missing; it names one of the recipes: {', '.join(self.recipes)}")
        if self.recipe not in self.recipes:
            raise ValueError(f"recipe: '{self.recipe}' is none of the recipes: {', '.join(self.recipes)}")
        if self.reference not in (None, *self.recipes):
            raise ValueError(f"reference: '{self.reference}' is none of the recipes: {', '.join(self.recipes)}")
        for name, bands in self.band_sets.items():
            if len(set(bands)) < len(bands):
                raise ValueError(f"band_sets.{name} names a band twice")
            shades = [one for one in bands if band(one).group is Group.SHADE]
            if shades:
                raise ValueError(
                    f"band_sets.{name} names {shades[0]}, which says what hides other bands: no model reads it"
                )
        return self

    @classmethod
    def read(cls, path: Path) -> Params:
        """Read and check params.yaml.

        Raises:
            ParamsError: it is missing, not YAML, or a key or value is wrong (all allowed keys are named).
        """
        try:
            text = path.read_text(encoding="utf-8")
            _refuse_odd_keys(text)
            content = yaml.safe_load(text)
        except FileNotFoundError as error:
            raise ParamsError(
                f"{path}: not found; run talud inside a project, or see the README to start one"
            ) from error
        except ParamsError as error:
            raise ParamsError(f"{path}: {error}") from error
        except (yaml.YAMLError, ValueError) as error:  # ValueError: no such day, or no UTF-8
            raise ParamsError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error
        try:
            params = cls.model_validate(content)
        except ValidationError as error:
            raise ParamsError(f"{path}: {_explain(error, cls)}") from error
        pipeline = path.with_name("dvc.yaml")
        if "recipe" not in content and pipeline.is_file() and b"${recipe}" in pipeline.read_bytes():
            warnings.warn(
                f"{path}: has no key 'recipe', so talud takes the recipe 'study'; {pipeline.name} needs the key, and "
                "dvc repro fails without it: add the line recipe: study",
                TaludWarning,
                stacklevel=2,
            )
        return params

    def area(self, name: str) -> Area:
        """The area of that name.

        Raises:
            ParamsError: there is none.
        """
        if name not in self.areas:
            raise ParamsError(f"no area '{name}' in params.yaml; it has: {', '.join(self.areas)}")
        return self.areas[name]

    def band_set(self, name: str) -> tuple[str, ...]:
        """The bands of the band set of that name.

        Raises:
            ParamsError: there is none.
        """
        if name not in self.band_sets:
            raise ParamsError(f"no band set '{name}' in params.yaml; it has: {', '.join(self.band_sets)}")
        return self.band_sets[name]

    @property
    def learning(self) -> Recipe:
        """The recipe that is chosen."""
        recipes: dict[str, Recipe] = self.recipes
        return recipes[self.recipe]

    @property
    def split_choices(self) -> dict[str, float | int]:
        """The seed and all of `split`, under the names that a contract's hyperparameters have for them."""
        return {"seed": self.seed} | {f"split_{name}": value for name, value in self.split.model_dump().items()}

    def areas_of(self, role: str) -> tuple[str, ...]:
        """The names of the areas of a role, in the order of params.yaml."""
        return tuple(name for name, area in self.areas.items() if area.role == role)


def _refuse_bands_of_others(key: str, names: Iterable[str]) -> None:
    for name in names:
        if band(name).group is not Group.OPTICAL:
            raise ValueError(f"{key}: '{name}' is a band of another source; give the optical band its own name")


def _refuse_odd_keys(text: str) -> None:
    """Check that all keys of a YAML text are text and unique.

    PyYAML silently keeps the last of equal keys.

    Raises:
        yaml.YAMLError: one stands twice, or the text is not YAML.
        ParamsError: one is no text.
    """
    nodes, seen = [yaml.compose(text, yaml.SafeLoader)], set()
    for node in nodes:
        if node is None or id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        lines: dict[str, int] = {}
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                nodes.append(value)
                name, line = key.value, key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if kind := _kind(key):
                    raise ParamsError(
                        f"the key {name} in line {line} is {kind} in YAML, not a name; put it in quotes, here and "
                        f'wherever it is named: "{name}"'
                    )
                if name in lines:
                    raise yaml.YAMLError(f"the key '{name}' in line {line} stands in line {lines[name]} already")
                lines[name] = line


def _kind(key: yaml.ScalarNode) -> str | None:
    """Return the type that YAML gives to a key which is not text.

    YAML 1.1 and 1.2 are considered, since DVC reads the later one. None where the key is text.
    """
    if key.style is None and _NUMBER.fullmatch(key.value):
        return "a number"
    if key.tag in (_TEXT_TAG, _MERGE_TAG):
        return None
    return _KINDS.get(key.tag, "no text")


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first fault, on one line, with the allowed keys where a key is wrong: a typo may make another key missing."""
    first = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"] if part != "[key]"]
    where = ".".join(location)
    if first["type"] != "extra_forbidden":
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "model_type":
            message = "expected keys, each with its value"
        if first["type"] == "missing":
            return f"the key '{where}' is missing"
        if first["type"] == "string_type":
            message = _no_text(first["input"])
        return f"{where}: {message}" if where else message
    allowed = sorted(_fields_at(model, location[:-1]))
    close = difflib.get_close_matches(location[-1], allowed, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f"unknown key '{where}'{hint} (allowed: {', '.join(allowed)})"


def _no_text(value: object) -> str:
    """Return the message for a value that YAML does not read as text."""
    if value is None:
        return "expected a text, but the value is empty; put null and ~ in quotes where they are names"
    if isinstance(value, bool):
        return "expected a text; YAML reads yes, no, on, off, true and false as something else: put it in quotes"
    return f"expected a text, but it is {str(value)[:60]!r} to YAML; put it in quotes"


def _fields_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that are allowed at a location of the file."""
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        else:  # a mapping of names to models
            current = current.__args__[-1]
    return list(current.model_fields)
