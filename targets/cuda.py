"""NVIDIA's GPUs: kernels in CUDA, and a router on the CPU."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import tvm
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.cuda_compiler import cuda_compiler
from hapi_tvm.targets.cuda_reach import ThisGpu
from hapi_tvm.targets.cuda_tuning import CudaBuilder, CudaRunner
from hapi_tvm.targets.llvm import usable_cores
from hapi_tvm.targets.nvcc import architectures_of, find_nvcc
from hapi_tvm.targets.rules.gpu import gpu_default_schedule, gpu_space, schedule_unbound

__all__ = ["CudaTarget", "cuda"]

logger = logging.getLogger(__name__)

# What CUDA 13.0's nvcc lists, and before them the older ones among TVM's tags that CUDA 12 still compiles for.
ARCHITECTURES = (
    *("sm_50", "sm_52", "sm_53", "sm_60", "sm_61", "sm_62", "sm_70", "sm_72"),
    *("sm_75", "sm_80", "sm_86", "sm_87", "sm_88", "sm_89", "sm_90"),
    *("sm_100", "sm_103", "sm_110", "sm_120", "sm_121"),
)
# Names of code for one chip or one family alone: sm_90a, sm_100f.
SUFFIXES = "af"
SOURCE = "source"
# Of every architecture here, without asking the driver for more: the least that TVM's tags of such GPUs say.
LIMITS = {"max_shared_memory_per_block": 49152, "max_threads_per_block": 1024, "thread_warp_size": 32}


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """A ``Target``: the first GPU of this machine, or, where there is none, one that is compiled for only.

    arch: of its kernels, such as "sm_90". nvcc: path of the compiler that makes them machine code; None embeds their
    source, which is compiled where the library is loaded.
    """

    name: str
    arch: str
    nvcc: str | None
    # The router's: it is one thread, and a thread of the GPU has no vectors.
    threads: ClassVar[int] = 1
    vector_width: ClassVar[int] = 1

    @property
    def tvm_target(self) -> tvm.target.Target:
        return tvm.target.Target({"kind": "cuda", "arch": self.arch, **LIMITS, "host": {"kind": "llvm"}})

    @property
    def needed_flags(self) -> tuple[str, ...]:
        return ()

    @property
    def has_device(self) -> bool:
        """Whether a GPU is here to run what is compiled."""
        return tvm.cuda(0).exist

    @property
    def reach(self) -> ThisGpu:
        return ThisGpu(self.name, self.nvcc)

    def builder(self) -> CudaBuilder:
        return CudaBuilder(usable_cores(), self.nvcc)

    def runner(self, repeats: int = 5, min_repeat_ms: int = 2) -> CudaRunner:
        return CudaRunner(self.reach, repeats, min_repeat_ms)

    def space(self, func: tvm.tirx.PrimFunc) -> ms.space_generator.SpaceGenerator:
        return gpu_space()

    def default_schedule(self, func: tvm.tirx.PrimFunc) -> tvm.s_tir.Schedule | None:
        return gpu_default_schedule(func, self.tvm_target)

    def finish(self, module: tvm.IRModule) -> tvm.IRModule:
        return schedule_unbound(module, self.tvm_target)

    @contextmanager
    def compiling(self) -> Iterator[None]:
        with self.tvm_target, cuda_compiler(self.nvcc):
            yield


def cuda(arch: str | None = None, *, compiler: str | None = None) -> CudaTarget:
    """NVIDIA's GPUs of one architecture, such as "sm_90"; None takes the one of this machine's first GPU.

    compiler: path of the nvcc that makes machine code; "source" to leave the kernels as source. None takes the
    nvcc of this machine, and source where it has none; the log says which. Compiling takes no GPU.

    Raises TargetError for an architecture that is unknown to TVM or to that nvcc, and where ``arch`` is None without a
    GPU; MissingCompiler where the nvcc asked for is not there.
    """
    if arch is None:
        arch = _this_gpu()
    nvcc = None if compiler == SOURCE else find_nvcc(compiler)
    known = ARCHITECTURES if nvcc is None else architectures_of(nvcc)
    if arch.rstrip(SUFFIXES) not in known:
        raise TargetError(_unknown(arch, known, nvcc))
    if nvcc is not None:
        logger.info("cuda %s: %s compiles the kernels, and the library holds machine code", arch, nvcc)
    else:
        why = "as asked" if compiler == SOURCE else "no nvcc on this machine"
        logger.info("cuda %s: the library holds CUDA source (%s), compiled where it is loaded", arch, why)
    return CudaTarget(f"cuda {arch}", arch, nvcc)


def _this_gpu() -> str:
    device = tvm.cuda(0)
    if not device.exist:
        raise TargetError(
            f"arch=None takes the GPU of this machine, and TVM finds none: give one of {', '.join(ARCHITECTURES)}"
        )
    return f"sm_{device.compute_version.replace('.', '')}"


def _unknown(arch: str, known: tuple[str, ...], nvcc: str | None) -> str:
    near = difflib.get_close_matches(arch, known, n=3)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    by = "" if nvcc is None else f" of {nvcc}"
    return (
        f"arch={arch!r} is none of the {len(known)} architectures{by}: {hint}Known are {', '.join(known)}; `nvidia-smi "
        "--query-gpu=compute_cap --format=csv` shows a GPU's, where 9.0 is sm_90"
    )
