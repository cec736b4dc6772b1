"""What a device family must offer. One implementation a file: ``arm``, ``cuda``, ``llvm``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import tvm

from hapi_tvm.targets.reach import Reach

__all__ = ["Target"]


@runtime_checkable
class Target(Protocol):
    """A device that kernels are tuned, measured and compiled for. Implementations are frozen.

    name: for people and for folder names, such as "llvm cascadelake threads=1". Figures of one name belong together.
    threads: of TVM's runtime, while kernels are measured and in production.
    vector_width: float32 lanes of the widest vector register; 1 where there are none, and nothing is blocked.
    """

    name: str
    threads: int
    vector_width: int

    @property
    def tvm_target(self) -> tvm.target.Target: ...

    @property
    def needed_flags(self) -> tuple[str, ...]:
        """Flags of /proc/cpuinfo that a processor must show to run what is compiled; () for other devices."""

    @property
    def reach(self) -> Reach:
        """How to run what is compiled for it."""

    def builder(self) -> tvm.s_tir.meta_schedule.builder.PyBuilder:
        """Compiles candidates; one that crashes or hangs the compiler is one failed result."""

    def runner(self, repeats: int = 5, min_repeat_ms: int = 2) -> tvm.s_tir.meta_schedule.runner.PyRunner:
        """Times candidates on the device, with ``threads`` threads, one at a time; of several devices each has one."""

    def space(self, func: tvm.tirx.PrimFunc) -> tvm.s_tir.meta_schedule.space_generator.SpaceGenerator:
        """The schedules that tuning chooses from, for this kernel."""

    def default_schedule(self, func: tvm.tirx.PrimFunc) -> tvm.s_tir.Schedule | None:
        """A good schedule without any trial; None where the kernel is best left as it is."""

    def finish(self, module: tvm.IRModule) -> tvm.IRModule:
        """Scheduled kernels as they are compiled, among other functions: the device's last rewrites.

        ``builder`` applies the same to candidates.
        """

    def compiling(self) -> AbstractContextManager[object]:
        """The block in which TVM compiles for this device: its target in scope, and what the compiler reads."""
