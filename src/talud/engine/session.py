"""ONNX Runtime sessions."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import onnxruntime
from numpy.typing import NDArray

Provider = Literal["auto", "cpu", "cuda"]
CUDA_PROVIDER = "CUDAExecutionProvider"
LOG_FATAL_ONLY = 4  # ONNX Runtime's severity level for fatal errors


def open_session(
    model: bytes,
    provider: Provider,
    weights: Mapping[str, NDArray[Any]] | None = None,
    threads: int | None = None,
) -> Any:
    """Open an ONNX Runtime session.

    All sessions of the process share a memory arena. Requesting memory from the system at each layer takes a fifth of a
    pass, and an arena for each session would hold memory that only one uses at a time.

    Args:
        model: content of the ONNX file.
        provider: requested provider.
        weights: constants that `split_weights` took out of the model.
        threads: number of threads of one pass on the CPU. Default: the physical cores.
    """
    options = _options(threads or physical_cores())
    _share_arena()
    if weights:
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    return onnxruntime.InferenceSession(
        model,
        options,
        providers=_providers(provider),
        enable_fallback=0,  # ONNX Runtime must not change the provider silently
    )


@cache
def _share_arena() -> None:
    """Register the process-wide memory arena of ONNX Runtime.

    It grows in powers of two, whose unused part is never written.
    """
    cpu = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(cpu, onnxruntime.OrtArenaCfg({"arena_extend_strategy": 0}))


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # The plan of a pass would be a second copy of all its tensors, and saves no time.
    options.enable_mem_pattern = False
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _providers(wanted: Provider) -> list[Any]:
    """Return the execution providers by preference.

    CUDA is left out if TensorFlow is loaded in this process, since the two load different builds of CUDA.
    """
    cpu = "CPUExecutionProvider"
    if wanted == "cpu" or CUDA_PROVIDER not in onnxruntime.get_available_providers() or "tensorflow" in sys.modules:
        return [cpu]
    # TF32 keeps 10 bits of the mantissa, so tiles would no longer equal one pass to 1e-6.
    # An exhaustive search would try every convolution algorithm for each new shape.
    return [(CUDA_PROVIDER, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}), cpu]


def processor_digest() -> str:
    """Return a digest of the processor's features.

    ONNX Runtime chooses its routines by them.
    """
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.md5(f"{platform.machine()} {features}".encode(), usedforsecurity=False).hexdigest()


def physical_cores() -> int:
    """Count the physical cores of this process.

    Threads of one core share its arithmetic units, so more threads do not help.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return len(cores)
