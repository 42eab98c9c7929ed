"""The sessions of ONNX Runtime: on which provider, with how many threads, and with whose memory."""

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
LOG_FATAL_ONLY = 4  # only what is fatal


def open_session(
    model: bytes,
    provider: Provider,
    weights: Mapping[str, NDArray[Any]] | None = None,
    threads: int | None = None,
) -> Any:
    """Open an ONNX Runtime session on the provider and with the options of talud.

    It takes its memory from an arena that all sessions of the process share. Asking the system for it anew at each
    layer takes a fifth of a pass, and an arena for each would hold what only one at a time needs.

    Args:
        model: the ONNX file's content.
        provider: the one that is asked for.
        weights: of a model `without_weights`.
        threads: of one pass on the CPU. Default: the physical cores.
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
        enable_fallback=0,  # a silent change of provider is none
    )


@cache
def _share_arena() -> None:
    """Make the memory arena, once in a process; it grows to powers of two, whose unused part is never filled."""
    cpu = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    onnxruntime.create_and_register_allocator(cpu, onnxruntime.OrtArenaCfg({"arena_extend_strategy": 0}))


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = LOG_FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _providers(wanted: Provider) -> list[Any]:
    """Return CUDA before the CPU, unless TensorFlow is in this process: the two load different builds of CUDA."""
    cpu = "CPUExecutionProvider"
    if wanted == "cpu" or CUDA_PROVIDER not in onnxruntime.get_available_providers() or "tensorflow" in sys.modules:
        return [cpu]
    # TF32 keeps 10 bits of mantissa: tiles would no longer equal the whole to 1e-6.
    # The exhaustive search tries every algorithm at each new shape.
    return [(CUDA_PROVIDER, {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}), cpu]


def processor_digest() -> str:
    """Return a digest of the features of the processor, on which the routines of ONNX Runtime depend."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8").splitlines() if told.is_file() else []
    able = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.md5(f"{platform.machine()} {able}".encode(), usedforsecurity=False).hexdigest()


def physical_cores() -> int:
    """Return the number of physical cores that this process may run on; threads of one core share its arithmetic."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return len(cores)
