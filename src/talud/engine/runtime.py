"""Models opened in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from talud.contract import Contract, Precision, variant_path
from talud.engine import model_file
from talud.engine.coverage import mask_partial_groups
from talud.engine.cropping import CroppedSessions, Sides
from talud.engine.model_file import INPUT_NAME, OUTPUT_NAME
from talud.engine.planning import TilePlanner, default_budget
from talud.engine.session import CUDA_PROVIDER, LOG_FATAL_ONLY, Provider, open_session, processor_digest
from talud.engine.tiling import Tile, Tiling, round_up
from talud.errors import ModelError, ParamsError
from talud.text import first_line

# Largest halo and alignment that a contract may state. A U-Net of depth 6, the deepest, has 448 and 64.
MAX_HALO_PIXELS = 512
# Distance from 0 and 1 up to which a probability is accepted. ONNX Runtime's sigmoid reaches 1.0000001.
ROUNDING_TOLERANCE = 1e-6


@dataclass(frozen=True)
class RegistryVersion:
    """Name and version of a model in the registry.

    Attributes:
        name: name of the registered model.
        version: number of the version.
        reason: reason for the choice of this model if talud chose it; else empty.
    """

    name: str
    version: str
    reason: str = ""


@dataclass(frozen=True, repr=False)
class Model:
    """Landslide model that is ready to run.

    Attributes:
        path: path of the ONNX file.
        contract: input that the model expects, and statements on its origin and quality.
        registered_as: name and version in the registry; None for a file that was named directly.
    """

    path: Path
    contract: Contract
    registered_as: RegistryVersion | None
    _session: Any = field(repr=False)
    _cropped_sessions: CroppedSessions = field(repr=False)

    @classmethod
    def load(
        cls,
        path: Path,
        registered_as: RegistryVersion | None = None,
        provider: Provider = "auto",
        threads: int | None = None,
    ) -> Model:
        """Open a model, and check its contract.

        Args:
            path: path of the file.
            registered_as: name and version in the registry, if it has one.
            provider: device to run on; "auto" is CUDA if a device is usable, else the CPU.
            threads: number of threads of one pass on the CPU. Default: the physical cores. The map does not depend on
                it.

        Raises:
            ModelError: The file is missing, not ONNX, has no contract, or does not fulfil it.
            ParamsError: The provider is unknown, or CUDA is requested and not usable.
        """
        if provider not in get_args(Provider):
            raise ParamsError(f"the provider is {provider}; it must be one of {', '.join(get_args(Provider))}")
        if not path.is_file():
            raise ModelError(f"{path}: no such file; name an .onnx file or a registered model (models:/NAME@ALIAS)")
        onnxruntime.set_default_logger_severity(LOG_FATAL_ONLY)
        try:
            content = path.read_bytes()
            graph = model_file.parse_model(content)
            croppings = CroppedSessions(graph, provider, threads)
            session = open_session(content, provider, threads=threads)
            metadata = session.get_modelmeta().custom_metadata_map
        except Exception as error:  # ONNX Runtime's exceptions have no common base class
            raise ModelError(f"{path}: is not a model that ONNX Runtime can open: {first_line(error)}") from error
        model = cls(path, Contract.from_metadata(metadata, str(path)), registered_as, session, croppings)
        if provider == "cuda" and model.provider != CUDA_PROVIDER:
            raise ParamsError(
                "the provider cuda was requested, but ONNX Runtime finds no usable CUDA device; check the device, its "
                "driver and the onnxruntime-gpu package, or use auto or cpu"
            )
        model._check(graph)
        return model

    def __repr__(self) -> str:
        """Return name, bands and file on one line."""
        bands, pixel_size = ", ".join(self.contract.input.band_names), self.contract.input.pixel_size
        return f"<Model {self.title}: {bands} at {pixel_size:g} m, {self.path}>"

    @property
    def provider(self) -> str:
        """Execution provider of the network, such as CPUExecutionProvider."""
        return str(self._session.get_providers()[0])

    @property
    def name(self) -> str:
        """Name of the registered model, or the band set."""
        return self.registered_as.name if self.registered_as else self.contract.origin.name

    @property
    def version(self) -> str:
        """Registered version, or "unregistered"."""
        return self.registered_as.version if self.registered_as and self.registered_as.version else "unregistered"

    @property
    def title(self) -> str:
        """Name and version for a reader.

        For example "landslide-unet-7band, version 3". A model that was named as a file is called "from a file", since
        the same file may be registered or not.
        """
        known = f"version {self.version}" if self.version.isdecimal() else "from a file"
        title = f"{self.name}, {known}"
        return title if self.contract.derived.precision == "float32" else f"{title}, {self.contract.derived.precision}"

    def run(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one pass of the network.

        Args:
            stack: bands (bands, height, width) in contract order and physical units, NaN where invalid; height and
                width are multiples of the alignment.

        Returns:
            The probability of a landslide, (height, width). Values at invalid pixels have no meaning.

        Raises:
            ModelError: The network fails, or returns values that are not probabilities.
        """
        probability: NDArray[np.float32] = self._probability(self._session, stack[np.newaxis], stack.shape[1:])[0]
        return probability

    def run_cores(self, windows: Sequence[NDArray[np.float32]], tiles: Sequence[Tile]) -> list[NDArray[np.float32]]:
        """Run one pass over tiles.

        With the exact halo, the result equals that of one pass over the whole raster. The few tiles that cannot be
        cropped are run one by one on the plain network.

        Args:
            windows: bands (bands, height, width) of each tile's window, as for `run`.
            tiles: tiles of equal key (`Tile.batch_key`).

        Returns:
            The probability (height, width) of each core. Values at invalid pixels have no meaning.

        Raises:
            ModelError: The network fails, or returns values that are not probabilities.
        """
        first = tiles[0]
        margin = self._cropped_sessions.margin(first.halo)
        if first.edges is None or all(first.edges) or margin is None:
            return [self.run(window)[tile.core_slices] for window, tile in zip(windows, tiles, strict=True)]
        sides, cell = Sides.of(margin, margin).without_edges(first.edges), self.contract.input.alignment
        insides = [window[:, *tile.cell_slices(sides, cell)] for window, tile in zip(windows, tiles, strict=True)]
        shape = tuple(side.stop - side.start for side in first.cell_slices((0, 0, 0, 0), cell))
        try:
            session = self._cropped_sessions.session(first.edges, first.halo)
        except Exception as error:  # as in `load`
            raise ModelError(f"{self.path}: the network cannot be cropped: {first_line(error)}") from error
        probability = self._probability(session, np.stack(insides), shape)
        return list(probability[:, : first.core.height, : first.core.width])

    def _probability(self, session: Any, batch: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Run a session, and check the result.

        Input and output are bound to the session's device, so that the result is copied once, at the end.

        Args:
            session: session of the plain or a cropped network.
            batch: bands (batch, bands, height, width).
            shape: expected (height, width) of the result.

        Returns:
            The probability (batch, height, width).
        """
        device = "cuda" if self.provider == CUDA_PROVIDER else "cpu"
        batch = mask_partial_groups(batch, self.contract)
        try:
            binding = session.io_binding()
            # This copies the array to a GPU; on the CPU it uses the array itself.
            stack = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(batch), device, 0)
            binding.bind_ortvalue_input(INPUT_NAME, stack)
            binding.bind_output(OUTPUT_NAME, device)
            session.run_with_iobinding(binding)
            output = binding.copy_outputs_to_cpu()[0]
        except Exception as error:  # as in `load`
            raise ModelError(f"{self.path}: the network fails: {first_line(error)}") from error
        if output.shape != (len(batch), 1, *shape):
            raise ModelError(f"{self.path}: the network turns {batch.shape} into {output.shape}; export it again")
        probability: NDArray[np.float32] = output[:, 0]
        low, high = probability.min(), probability.max()
        if not (low >= -ROUNDING_TOLERANCE and high <= 1 + ROUNDING_TOLERANCE):  # NaN fails this test too
            raise ModelError(f"{self.path}: the network returns values that are not probabilities; the file is damaged")
        return np.clip(probability, 0, 1, out=probability)

    def release_memory(self) -> None:
        """Release the memory of passes."""
        self._cropped_sessions.session.cache_clear()
        cell = self.contract.input.alignment
        options = onnxruntime.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        smallest = np.full((1, len(self.contract.input.bands), cell, 2 * cell), np.nan, np.float32)
        # The arena shrinks only at the end of a pass.
        self._session.run(None, {INPUT_NAME: smallest}, options)

    @property
    def numeric_environment(self) -> dict[str, str]:
        """Further facts that the map's values depend on.

        A network of reduced precision may round to another integer on another processor, so the processor is one;
        float32 has none, since its results differ in the last bits only.
        """
        return {} if self.contract.derived.precision == "float32" else {"processor": processor_digest()}

    @property
    def halo(self) -> int:
        """Exact halo, a multiple of the alignment."""
        return round_up(self.contract.input.halo, self.contract.input.alignment)

    @cached_property
    def planner(self) -> TilePlanner:
        """Planner of the tiles of rasters."""
        return TilePlanner.of(self._cropped_sessions, self.contract.measured.memory)

    def tiling(
        self, shape: tuple[int, int], tile: int | None = None, halo: int | None = None, memory: int | None = None
    ) -> Tiling:
        """Cut a raster into tiles.

        Args:
            shape: (height, width) of the raster.
            tile: longest side of a core in pixels. Default: the tiles with the least arithmetic that fit into memory.
            halo: pixels of context, rounded up to the lattice. Default and maximum: the exact halo.
            memory: memory in bytes that a pass may take, with the weights. Default: 2 GB, or half of the machine's
                memory if that is less.
        """
        alignment = self.contract.input.alignment
        halo = self.halo if halo is None else min(round_up(halo, alignment), self.halo)
        if tile is None:
            return self.planner.choose(shape, halo, alignment, memory or default_budget())
        return Tiling.of(shape, tile, halo, alignment)

    def halo_error(self, tiling: Tiling) -> float | None:
        """Return the largest known error of a tiling.

        It is 0 with the exact halo, or with one tile. With a smaller halo it is the value that the contract states, the
        largest difference measured on windows of the training areas; it is not a bound. None if the contract states
        none.
        """
        exact = tiling.rows.halo >= self.halo or len(tiling) == 1
        return 0.0 if exact else self.contract.measured.halo_errors.get(tiling.rows.halo)

    def batch_size(self, tiling: Tiling, memory: int | None = None) -> int:
        """Return the number of tiles in a pass.

        It is 1 on the CPU, where larger batches are not faster, and as many as fit into memory on CUDA.

        Args:
            tiling: tiles of the raster.
            memory: memory in bytes, as for `tiling`.
        """
        if self.provider != CUDA_PROVIDER:
            return 1
        fixed = self.memory_bytes(tiling, 0)
        free = (memory or default_budget()) - fixed
        return max(min(free // (self.memory_bytes(tiling) - fixed), len(tiling)), 1)

    def memory_bytes(self, tiling: Tiling, batch: int = 1) -> int:
        """Return an upper bound of the memory of a pass, with the weights."""
        return self.planner.memory_bytes(tiling, batch)

    def probability(self, stack: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the probability of a landslide for an array.

        Large arrays are tiled, with exactly the same result. Only the number of bands is checked against the contract.

        Args:
            stack: bands of any height and width, float32 (bands, height, width), in the order of
                `contract.input.band_names` and in physical units; NaN where invalid.

        Returns:
            Probabilities from 0 to 1, float32 (height, width). Values where a band is invalid have no meaning.

        Raises:
            ModelError: The network fails.
        """
        tiling = self.tiling((stack.shape[1], stack.shape[2]))
        padded = np.full((len(stack), *tiling.padded), np.nan, np.float32)
        padded[:, : stack.shape[1], : stack.shape[2]] = stack
        probability = np.empty(stack.shape[1:], np.float32)
        for tile in tiling:
            window = np.ascontiguousarray(padded[:, *tile.window.toslices()])
            probability[tile.core.toslices()] = self.run_cores([window], [tile])[0]
        return probability

    def _check(self, graph: onnx.ModelProto) -> None:
        """Check that graph and contract agree.

        The graph is run once.

        Input, output, halo and alignment are compared.

        Raises:
            ModelError: The graph does not agree with the contract, or fails.
        """
        bands = len(self.contract.input.bands)
        for found, name, channels in (
            (self._session.get_inputs(), INPUT_NAME, bands),
            (self._session.get_outputs(), OUTPUT_NAME, 1),
        ):
            shapes = ", ".join(f"{value.name} {value.type} {value.shape}" for value in found)
            expected = f"one tensor(float) '{name}' (batch, {channels}, height, width), height and width free"
            fits = len(found) == 1 and (found[0].name, found[0].type) == (name, "tensor(float)")
            if not fits or not _free_image(found[0].shape, channels):
                raise ModelError(f"{self.path}: has {shapes}, but its contract states {expected}; export it again")
        cell, halo = self.contract.input.alignment, self.contract.input.halo
        if max(cell, halo) > MAX_HALO_PIXELS:
            raise ModelError(
                f"{self.path}: states an alignment of {cell} and a halo of {halo} pixels, more than the largest "
                f"supported value, {MAX_HALO_PIXELS}; export it again"
            )
        try:
            model_file.check_lattice(graph, self.contract)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from error
        # Not square: ONNX Runtime uses the memory plan of the first square shape for all square shapes.
        self.run(np.full((bands, cell, 2 * cell), np.nan, np.float32))


def _free_image(shape: list[Any], channels: int) -> bool:
    """Check if a shape is (batch, channels, height, width) with free sides."""
    return len(shape) == 4 and shape[1] == channels and not any(isinstance(side, int) for side in shape[2:])


def open_variant(
    path: Path, precision: Precision | None, registered_as: RegistryVersion | None, provider: Provider = "auto"
) -> Model:
    """Open a model file, or a variant of it.

    The variant is the file next to it (`variant_path`).

    Args:
        path: path of the model.
        precision: precision of the variant. Default: that of the file.
        registered_as: name and version of the model in the registry.
        provider: device to run on, as for `Model.load`.

    Raises:
        ModelError: A file cannot be loaded, there is no such variant, or it was made from another model.
        ParamsError: The provider is unknown or not usable.
    """
    named = Model.load(path, registered_as, provider)
    if precision in (None, named.contract.derived.precision):
        return named
    variant_file = variant_path(path, precision)
    if named.contract.derived.precision != "float32" or variant_file == path:
        raise ModelError(
            f"{path}: has precision {named.contract.derived.precision}, not {precision}; give the float32 file"
        )
    make = f"talud quantize models/{named.contract.origin.name}.onnx --precision {precision}"
    if not variant_file.is_file():
        if registered_as:
            raise ModelError(f"{named.title}: has no {precision} variant; run {make}, then talud register")
        raise ModelError(f"{variant_file}: no such file; make it with talud quantize {path} --precision {precision}")
    variant = Model.load(variant_file, registered_as, provider)
    if variant.contract.derived.precision != precision or not variant.contract.is_variant_of(named.contract):
        again = f"{make}, then talud register," if registered_as else f"talud quantize {path} --precision {precision}"
        raise ModelError(f"{variant_file}: is not the {precision} variant of {path.name}; run {again} again")
    return variant
