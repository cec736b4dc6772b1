"""64-bit Arm boards: compiled for on this machine, run on the board."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace

import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.target import codegen

from hapi_tvm.errors import TargetError
from hapi_tvm.processor import flags_of
from hapi_tvm.targets.arm_devices import TRIPLE, ArmDevice, check_mcpu, find_device
from hapi_tvm.targets.cross import cross_linker, find_cross_compiler
from hapi_tvm.targets.llvm import usable_cores
from hapi_tvm.targets.rpc.builder import CrossBuilder
from hapi_tvm.targets.rules import cpu_default_schedule, cpu_space
from hapi_tvm.targets.rules.prefetch import PrefetchWeights
from hapi_tvm.targets.rules.vectors import NEON

__all__ = ["ArmTarget", "arm"]

# A key with this word stands for boards that are emulated: their figures are real, and say nothing of a board.
EMULATED = "emulated"


@dataclass(frozen=True, slots=True)
class ArmTarget:
    """A ``Target``: the boards behind ``key`` at a tracker, or with neither, one that is compiled for only.

    kind: what is compiled for. threads: of TVM's runtime on the board. cc: path of the compiler that links.
    """

    name: str
    kind: ArmDevice
    threads: int
    cc: str
    tracker: str | None = None
    key: str | None = None

    @property
    def vector_width(self) -> int:
        return NEON.lanes

    @property
    def emulated(self) -> bool:
        """Whether what is measured was measured on an emulated board, and is no figure of any processor."""
        return self.key is not None and EMULATED in self.key

    @property
    def tvm_target(self) -> tvm.target.Target:
        return _tvm_target(self.kind, self.threads)

    @property
    def needed_flags(self) -> tuple[str, ...]:
        return flags_of(_features(self.kind))

    def device(self) -> tvm.runtime.Device:
        raise self._no_board("is no device of this machine")

    def builder(self) -> CrossBuilder:
        return CrossBuilder(usable_cores(), self.cc)

    def runner(self, repeats: int = 5, min_repeat_ms: int = 2) -> ms.runner.PyRunner:
        raise self._no_board("cannot time a kernel")

    def space(self, func: tvm.tirx.PrimFunc) -> ms.space_generator.SpaceGenerator:
        return cpu_space(func, NEON, self.threads)

    def default_schedule(self, func: tvm.tirx.PrimFunc) -> tvm.s_tir.Schedule | None:
        return cpu_default_schedule(func, NEON, self.threads)

    def finish(self, module: tvm.IRModule) -> tvm.IRModule:
        return PrefetchWeights()(module)

    def export(self, executable: tvm.runtime.Executable, path: str | os.PathLike[str]) -> None:
        """Write a compiled module as a library for the board. Raises BuildError where it cannot be linked."""
        executable.export_library(str(path), fcompile=cross_linker(self.cc))

    def _no_board(self, what: str) -> TargetError:
        return TargetError(
            f"{self.name} {what}: it has no board, and compiles only. Give tracker='host:port' and key=...; "
            "`scripts/emulated_board.py setup` makes an emulated board where there is no real one"
        )


def _tvm_target(kind: ArmDevice, threads: int = 1) -> tvm.target.Target:
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": kind.triple,
            "mcpu": kind.mcpu,
            "mattr": ["+neon", *kind.extensions],
            "num-cores": threads,
        }
    )


@functools.cache
def _features(kind: ArmDevice) -> frozenset[str]:
    """What LLVM may use when it compiles for ``kind``, in LLVM's names."""
    return frozenset(str(name) for name in codegen.llvm_get_cpu_features(_tvm_target(kind)))


def arm(
    tracker: str | None = None,
    key: str | None = None,
    *,
    device: str | None = None,
    mcpu: str | None = None,
    threads: int = 1,
    cc: str | None = None,
) -> ArmTarget:
    """64-bit Arm boards that answer for ``key`` at the ``tracker`` ("host:port"); with neither, to compile only.

    device: one of TVM's tags, such as "raspberry-pi/4b-aarch64" (``arm_devices``). mcpu: LLVM's name of the
    processor, "cortex-a72" say, in place of the tag's; with neither of the two, code for any 64-bit Arm. threads:
    of TVM's runtime on the board, up to its cores where the tag tells them. cc: name or path of a C compiler that
    links for the board; None takes GNU's (Debian's gcc-aarch64-linux-gnu).

    Kernels are scheduled for NEON: 4 float32 lanes, 32 registers; SVE, where a processor has it, stays unused.
    A key with the word "emulated" marks everything that is measured there as emulated.

    Raises TargetError for an unknown device or processor, threads out of range, or a tracker without a key;
    MissingCompiler where nothing links for the board.
    """
    if (tracker is None) != (key is None):
        raise TargetError(f"tracker={tracker!r} and key={key!r} belong together: give both, or none to compile only")
    kind = ArmDevice() if device is None else find_device(device)
    if mcpu is not None:
        check_mcpu(mcpu, kind.triple)
        kind = replace(kind, mcpu=mcpu)
    _check_threads(threads, kind.cores, device)
    return ArmTarget(_name(kind, threads, key), kind, threads, find_cross_compiler(kind.triple, cc), tracker, key)


def _check_threads(threads: int, cores: int | None, device: str | None) -> None:
    if cores is not None and not 1 <= threads <= cores:
        raise TargetError(f"threads={threads} must lie in 1..{cores}, the cores of {device}")
    if threads < 1:
        raise TargetError(f"threads={threads} must be at least 1")


def _name(kind: ArmDevice, threads: int, key: str | None) -> str:
    """Everything that kernels and their figures depend on."""
    parts = ["arm", kind.mcpu, *kind.extensions]
    parts += [kind.triple] if kind.triple != TRIPLE else []
    parts += [f"threads={threads}"]
    parts += [f"key={key}"] if key is not None else []
    return " ".join(parts)
