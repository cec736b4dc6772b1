"""The CPU of this machine, compiled for by LLVM."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass

import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.target import codegen

from hapi_tvm.errors import TargetError
from hapi_tvm.targets.forkserver_builder import ForkServerBuilder
from hapi_tvm.targets.forkserver_runner import ForkServerRunner
from hapi_tvm.targets.rules import cpu_default_schedule, cpu_space
from hapi_tvm.targets.rules.prefetch import PrefetchWeights

__all__ = ["LlvmTarget", "llvm"]


@dataclass(frozen=True, slots=True)
class LlvmTarget:
    """A ``Target``: this machine's CPU, with ``threads`` threads.

    mcpu: LLVM's name of the processor. vector_width: float32 lanes.
    """

    name: str
    mcpu: str
    threads: int
    vector_width: int

    @property
    def tvm_target(self) -> tvm.target.Target:
        return tvm.target.Target({"kind": "llvm", "mcpu": self.mcpu, "num-cores": self.threads})

    def device(self) -> tvm.runtime.Device:
        return tvm.cpu(0)

    def builder(self) -> ForkServerBuilder:
        return ForkServerBuilder(workers=usable_cores())

    def runner(self, repeats: int = 5, min_repeat_ms: int = 2) -> ForkServerRunner:
        return ForkServerRunner(self.threads, repeats, min_repeat_ms)

    def space(self, func: tvm.tirx.PrimFunc) -> ms.space_generator.SpaceGenerator:
        return cpu_space(func, self.vector_width, self.threads)

    def default_schedule(self, func: tvm.tirx.PrimFunc) -> tvm.s_tir.Schedule | None:
        return cpu_default_schedule(func, self.vector_width, self.threads)

    def finish(self, module: tvm.IRModule) -> tvm.IRModule:
        return PrefetchWeights()(module)


def usable_cores() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _vector_width(target: tvm.target.Target) -> int:
    """float32 lanes: 16 with AVX-512, 8 with AVX2, else 4."""
    with target:
        for feature, lanes in (("avx512f", 16), ("avx2", 8)):
            if codegen.llvm_cpu_has_features(feature):
                return lanes
    return 4


def _check_mcpu(mcpu: str) -> None:
    with tvm.target.Target({"kind": "llvm"}):
        known = sorted(str(name) for name in codegen.llvm_get_cpu_archlist())
    if mcpu not in known:
        near = difflib.get_close_matches(mcpu, known, n=5) or known[:5]
        raise TargetError(
            f"mcpu={mcpu!r} is none of the {len(known)} processors that LLVM knows for this machine, "
            f"such as {', '.join(near)}; leave mcpu out to take the one of this machine"
        )


def llvm(threads: int = 1, mcpu: str | None = None) -> LlvmTarget:
    """The CPU of this machine. threads: 1 up to its cores. mcpu: None takes the processor found.

    Raises TargetError for threads out of range, or a processor that LLVM does not know.
    """
    cores = usable_cores()
    if not 1 <= threads <= cores:
        raise TargetError(f"threads={threads} must lie in 1..{cores}, the cores that this process may use")
    if mcpu is None:
        mcpu = str(codegen.llvm_get_system_cpu())
    _check_mcpu(mcpu)
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": threads})
    return LlvmTarget(f"llvm {mcpu} threads={threads}", mcpu, threads, _vector_width(target))
