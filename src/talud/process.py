"""Environment variables, standard error and Ctrl-C of this process.

Variables of GDAL, PROJ and OpenMP that would change results are removed on import. The wheels of rasterio, pyproj and
pyogrio each contain a GDAL or PROJ with its data. The environment of another installation (QGIS, conda, a system
package) would point them to other data, and GDAL's options change how files are read. Results must not depend on
either.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

# Variable with the value of GDAL_SKIP in processes that the service confines.
CONFINED_DRIVERS = "TALUD_CONFINED_DRIVERS"
# Variables that name the data of another installation.
INSTALLATION_VARIABLES = (
    "PROJ_DATA",
    "PROJ_LIB",
    "PROJ_AUX_DB",
    "GDAL_DATA",
    "GDAL_DRIVER_PATH",
    "OGR_DRIVER_PATH",
    "GDAL_PYTHON_DRIVER_PATH",
    "GEOTIFF_CSV",
)
# Options of GDAL and PROJ that change results, unless `KEPT_OPTIONS` matches too.
RESULT_OPTIONS = re.compile(
    r"(GDAL|OGR|OSR|GTIFF|PROJ)_.*|SHAPE_(ENCODING|RESTORE_SHX|REWIND_ON_WRITE)|SQLITE_LIST_ALL_TABLES"
    r"|VRT_(SHARED_SOURCE|VIRTUAL_OVERVIEWS)|TIFF_USE_OVR|USE_RRD|CENTER_LONG|CHECK_WITH_INVERT_PROJ"
    r"|(COMPRESS|INTERLEAVE|PHOTOMETRIC|PREDICTOR|ZLEVEL|BIGTIFF|SPARSE_OK|JPEG_QUALITY)_OVERVIEW"
)
# Options for network, memory, threads, logging and building GDAL, which do not change the data read.
KEPT_OPTIONS = re.compile(
    r"GDAL_(HTTP|CURL|PROXY)_.*|GDAL_(CACHEMAX|NUM_THREADS|SWATH_SIZE|INGESTED_BYTES_AT_OPEN|MAX_DATASET_POOL_SIZE)"
    r"|GDAL_(MAX_DATASET_POOL_RAM_USAGE|BAND_BLOCK_CACHE|FORCE_CACHING|DEFAULT_WMS_CACHE_PATH)"
    r"|PROJ_(NETWORK|NETWORK_ENDPOINT|CURL_CA_BUNDLE|USER_WRITABLE_DIRECTORY|DEBUG)"
    r"|(GDAL|PROJ)_(VERSION|CONFIG|HOME|DIR|ROOT|INCDIR|LIBDIR|WHEEL)"
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMEXPR_MAX_THREADS")
MAX_THREADS = 1024


def clean_environment(environ: MutableMapping[str, str]) -> str | None:
    """Remove variables that change results, and normalise thread counts.

    Thread counts are rewritten so that every library can parse them. Variables that name another installation are kept
    if rasterio has no data of its own, as with conda.

    Args:
        environ: environment variables, which are changed.

    Returns:
        One-line warning for the user; None if only thread counts changed.
    """
    for name in THREAD_VARIABLES:
        _clean_thread_count(environ, name)
    bundled = _bundled("proj_data/proj.db") is not None
    removed = sorted(name for name in environ if _changes_results(name, bundled) and not _is_ours(environ, name))
    for name in removed:
        del environ[name]
    if not removed:
        return None
    return (
        f"the environment sets {', '.join(removed)}, which talud ignores: it uses the data that its "
        "own packages contain, and GDAL's default options; unset those that no other program needs"
    )


def clean_process_environment() -> None:
    """Clean this process's environment; print any warning on stderr."""
    warning = clean_environment(os.environ)
    if warning is None:
        return
    if "rasterio.env" in sys.modules:
        _restore_bundled_data()
    if sys.stderr is not None:
        sys.stderr.write(f"talud: warning: {warning}\n")


def _changes_results(name: str, bundled: bool) -> bool:
    if name in INSTALLATION_VARIABLES:
        return bundled
    return RESULT_OPTIONS.fullmatch(name) is not None and KEPT_OPTIONS.fullmatch(name) is None


def _is_ours(environ: MutableMapping[str, str], name: str) -> bool:
    """Check if the service has set a variable for its child processes."""
    confined = environ.get(CONFINED_DRIVERS)
    return name in ("GDAL_SKIP", "OGR_SKIP") and confined is not None and environ[name] == confined


def _clean_thread_count(environ: MutableMapping[str, str], name: str) -> None:
    """Normalise a thread count in the environment.

    The first number of a list such as `4,2`, which OpenMP allows, is kept; a value that is not a number is removed.
    """
    if name not in environ:
        return
    first = environ[name].split(",")[0].strip()
    number = int(first) if re.fullmatch("[0-9]{1,9}", first) else 0
    if number:
        environ[name] = str(min(number, MAX_THREADS))
    else:
        del environ[name]


def _bundled(name: str) -> Path | None:
    """Return the path of data in rasterio's package; None if missing."""
    spec = find_spec("rasterio")
    folders = spec.submodule_search_locations or () if spec else ()
    return next((Path(folder) / name for folder in folders if (Path(folder) / name).exists()), None)


def _restore_bundled_data() -> None:
    """Point rasterio to the data of its own package.

    Needed if rasterio was imported before talud, because it has read the variables already.
    """
    from rasterio._env import set_gdal_config, set_proj_data_search_path

    proj, gdal = _bundled("proj_data"), _bundled("gdal_data")
    if proj is not None:
        set_proj_data_search_path(str(proj))
    if gdal is not None:
        set_gdal_config("GDAL_DATA", str(gdal))


@dataclass
class _SuppressedStderr:
    """State of a suppressed stderr.

    Attributes:
        lock: lock for the other attributes.
        blocks: number of active blocks; the end of the last one restores stderr.
        terminal: file descriptor of the original stderr.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    blocks: int = 0
    terminal: int = -1


_suppressed = _SuppressedStderr()


@contextmanager
def stderr_suppressed() -> Iterator[None]:
    """Suppress what C libraries write to stderr.

    Python errors are still shown, after the block.
    """
    with _suppressed.lock:
        if not _suppressed.blocks:
            sys.stderr.flush()
            _suppressed.terminal = os.dup(2)
            with Path(os.devnull).open("w") as sink:
                os.dup2(sink.fileno(), 2)
        _suppressed.blocks += 1
    try:
        yield
    finally:
        with _suppressed.lock:
            _suppressed.blocks -= 1
            if not _suppressed.blocks:
                os.dup2(_suppressed.terminal, 2)
                os.close(_suppressed.terminal)


def has_desktop() -> bool:
    """Check for a terminal and a browser on this machine."""
    screen = sys.platform in ("darwin", "win32") or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    return sys.stdout.isatty() and screen


@contextmanager
def sigint_ends_process() -> Iterator[None]:
    """Let Ctrl-C in the block end the process at once.

    Code in C, which would delay Python's handler, is ended too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


@contextmanager
def defer_sigint() -> Iterator[Callable[[], None]]:
    """Defer a first Ctrl-C to the end of the block.

    A second one acts at once.

    The block protects work that must not be interrupted, such as a transaction, which would leave a database locked, or
    an import, which may swallow the interrupt.

    Yields:
        Function that delivers a deferred Ctrl-C, for points of the block at which it may be interrupted.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield lambda: None
        return
    held = False

    def hold(number: int, _: FrameType | None) -> None:
        nonlocal held
        held = True
        signal.signal(number, before)

    def release() -> None:
        nonlocal held
        if held:
            held = False
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, hold)
    try:
        yield release
    finally:
        signal.signal(signal.SIGINT, before)
        release()
