"""NVIDIA's GPUs: kernels in CUDA, and a router on the CPU."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import tvm
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.cross import find_cross_compiler
from hapi_tvm.targets.cuda_arch import ARCHITECTURES, check_arch, cuda_tvm_target, find_gpu
from hapi_tvm.targets.cuda_compiler import cuda_compiler
from hapi_tvm.targets.cuda_reach import ThisGpu
from hapi_tvm.targets.cuda_tuning import CudaBuilder, CudaRunner
from hapi_tvm.targets.llvm import usable_cores
from hapi_tvm.targets.no_board import NoBoard
from hapi_tvm.targets.nvcc import find_nvcc
from hapi_tvm.targets.reach import Reach
from hapi_tvm.targets.rpc.boards import Boards
from hapi_tvm.targets.rpc.gpu import gpu_of
from hapi_tvm.targets.rpc.runner import FleetRunner
from hapi_tvm.targets.rpc.tracker import Tracker, parse_tracker
from hapi_tvm.targets.rpc.yardstick import GpuYardstick
from hapi_tvm.targets.rules.gpu import gpu_default_schedule, gpu_space, schedule_unbound

__all__ = ["CudaTarget", "cuda"]

logger = logging.getLogger(__name__)

SOURCE = "source"


@dataclass(frozen=True, slots=True)
class CudaTarget:
    """A ``Target``: the first GPU of this machine or of the boards behind ``tracker``; where there is none, one that is
    compiled for only.

    arch: of its kernels, such as "sm_90". nvcc: path of the compiler that makes them machine code; None embeds their
    source, which is compiled where the library is loaded. host: architecture of the machine that the GPU is in, as
    ``platform.machine`` says it. cc: path of the compiler that links for it; None where this machine's does.
    """

    name: str
    arch: str
    nvcc: str | None
    host: str
    cc: str | None = None
    tracker: Tracker | None = None
    # The router's: it is one thread, and a thread of the GPU has no vectors.
    threads: ClassVar[int] = 1
    vector_width: ClassVar[int] = 1

    @property
    def tvm_target(self) -> tvm.target.Target:
        return cuda_tvm_target(self.arch, self.host)

    @property
    def needed_flags(self) -> tuple[str, ...]:
        return ()

    @property
    def has_device(self) -> bool:
        """Whether there is a GPU to run what is compiled: here, or behind the tracker."""
        return self.tracker is not None or (self.host == platform.machine() and tvm.cuda(0).exist)

    @property
    def reach(self) -> Reach:
        if self.tracker is not None:
            return Boards(self.tracker, self.threads, self.cc, GpuYardstick(self.arch, self.nvcc, self.cc))
        if self.cc is not None:
            return NoBoard(self.name, self.cc, advice="; hapi_tvm.port compiles a finished run for it")
        return ThisGpu(self.name, self.nvcc)

    def builder(self) -> CudaBuilder:
        return CudaBuilder(usable_cores(), self.nvcc, self.cc)

    def runner(self, repeats: int = 5, min_repeat_ms: int = 2) -> ms.runner.PyRunner:
        reach = self.reach
        if isinstance(reach, Boards):
            return FleetRunner(reach.fleet, repeats, min_repeat_ms, self.threads)
        return CudaRunner(reach, repeats, min_repeat_ms)

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


def cuda(
    arch: str | None = None,
    *,
    device: str | None = None,
    tracker: str | None = None,
    key: str | None = None,
    host: str | None = None,
    compiler: str | None = None,
    cc: str | None = None,
) -> CudaTarget:
    """NVIDIA's GPUs of one architecture: this machine's first, or with tracker and key, those of boards.

    arch: such as "sm_90". device: one of TVM's tags in its place, such as "nvidia/jetson-agx-orin-32gb". With neither,
    this machine's GPU is asked, or that of one board.
    tracker: "host:port" of TVM's RPC tracker. key: of the boards there, which must be alike; what is tuned and measured
    on them is kept by key.
    host: architecture of the machine that the GPU is in, "x86_64" or "aarch64"; None takes the device's where the tag
    tells it, or asks a board, or takes this machine's. cc: name or path of a C compiler that links for another host;
    None takes GNU's.
    compiler: path of the nvcc that makes machine code; "source" to leave the kernels as source, which no board
    measures. None takes the nvcc of this machine, and source where it has none; the log says which.

    Compiling takes no GPU. Raises TargetError for an architecture that is unknown to TVM or to that nvcc, for an
    unknown device, where there is no GPU to ask, for one of tracker and key without the other, and for source on
    boards; MissingCompiler where nvcc or the linker asked for is not there.
    """
    if (tracker is None) != (key is None):
        raise TargetError(
            f"tracker={tracker!r} and key={key!r} belong together: give both, or neither for this machine"
        )
    if arch is not None and device is not None:
        raise TargetError(f"arch={arch!r} and device={device!r} both name the architecture: give one of them")
    nvcc = None if compiler == SOURCE else find_nvcc(compiler)
    boards = None if tracker is None else parse_tracker(tracker, key)
    if boards is not None and nvcc is None:
        raise TargetError(
            "boards measure machine code, and here is no nvcc that makes it: `pip install 'nvidia-cuda-nvcc<14'`, and "
            "leave compiler out"
        )
    arch, host = _found(arch, device, boards, host)
    check_arch(arch, nvcc)
    cc = _linker(host, cc)
    if nvcc is not None:
        logger.info("cuda %s: %s compiles the kernels, and the library holds machine code", arch, nvcc)
    else:
        why = "as asked" if compiler == SOURCE else "no nvcc on this machine"
        logger.info("cuda %s: the library holds CUDA source (%s), compiled where it is loaded", arch, why)
    return CudaTarget(_name(arch, host, key), arch, nvcc, host, cc, boards)


def _found(arch: str | None, device: str | None, boards: Tracker | None, host: str | None) -> tuple[str, str]:
    """Architectures of the GPU and of its host; asks whom it must."""
    if device is not None:
        arch, told = find_gpu(device)
        host = host or told
    if boards is not None and (arch is None or host is None):
        gpu = gpu_of(boards)
        arch = gpu.arch if arch is None else arch
        if host is None and gpu.triple is None:
            raise TargetError(
                f"the board of key {boards.key!r} at {boards.address} does not tell its processor: give host='aarch64' "
                "or host='x86_64', or start its server with hapi-tvm board serve"
            )
        host = host or gpu.triple.partition("-")[0]
    return _this_gpu() if arch is None else arch, host or platform.machine()


def _linker(host: str, cc: str | None) -> str | None:
    if host != platform.machine():
        return find_cross_compiler(f"{host}-linux-gnu", cc)
    if cc is not None:
        raise TargetError(f"cc={cc!r} links for another host, and {host} is this machine's: leave cc out, or give host")
    return None


def _name(arch: str, host: str, key: str | None) -> str:
    """Everything that kernels and their figures depend on."""
    parts = ["cuda", arch]
    parts += [f"host={host}"] if host != platform.machine() else []
    parts += [f"key={key}"] if key is not None else []
    return " ".join(parts)


def _this_gpu() -> str:
    device = tvm.cuda(0)
    if not device.exist:
        raise TargetError(
            f"arch=None takes the GPU of this machine, and TVM finds none: give one of {', '.join(ARCHITECTURES)}, or "
            "tracker and key of a board that has one"
        )
    return f"sm_{device.compute_version.replace('.', '')}"
