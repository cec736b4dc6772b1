"""64-bit Arm boards: compiled for on this machine, run on the board."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.target import codegen

from hapi_tvm.errors import TargetError
from hapi_tvm.processor import flags_of
from hapi_tvm.targets.arm_devices import TRIPLE, ArmDevice, check_mcpu, find_device
from hapi_tvm.targets.cross import find_cross_compiler
from hapi_tvm.targets.llvm import usable_cores
from hapi_tvm.targets.no_board import NoBoard
from hapi_tvm.targets.reach import Reach
from hapi_tvm.targets.rpc.boards import Boards
from hapi_tvm.targets.rpc.builder import CrossBuilder
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.targets.rpc.processor import processor_of
from hapi_tvm.targets.rpc.runner import FleetRunner
from hapi_tvm.targets.rpc.tracker import Tracker, parse_tracker
from hapi_tvm.targets.rules import cpu_default_schedule, cpu_space
from hapi_tvm.targets.rules.prefetch import PrefetchWeights
from hapi_tvm.targets.rules.vectors import NEON

__all__ = ["ArmTarget", "arm"]

# A key with this word stands for boards that are emulated: their times are no processor's.
EMULATED = "emulated"


@dataclass(frozen=True, slots=True)
class ArmTarget:
    """A ``Target``: the boards behind ``tracker``, or without one, what can only be compiled for.

    kind: what is compiled for. threads: of TVM's runtime on the board. cc: path of the compiler that links for it.
    """

    name: str
    kind: ArmDevice
    threads: int
    cc: str
    tracker: Tracker | None = None

    @property
    def vector_width(self) -> int:
        return NEON.lanes

    @property
    def emulated(self) -> bool:
        """Whether what is measured is measured on an emulated board, and is no figure of any processor."""
        return self.tracker is not None and EMULATED in self.tracker.key

    @property
    def tvm_target(self) -> tvm.target.Target:
        return _tvm_target(self.kind, self.threads)

    @property
    def needed_flags(self) -> tuple[str, ...]:
        return flags_of(_features(self.kind))

    @property
    def reach(self) -> Reach:
        return NoBoard(self.name, self.cc) if self.tracker is None else Boards(self.tracker, self.threads, self.cc)

    def builder(self) -> CrossBuilder:
        return CrossBuilder(usable_cores(), self.cc)

    def runner(self, repeats: int = 5, min_repeat_ms: int = 2) -> FleetRunner:
        if self.tracker is None:
            NoBoard(self.name, self.cc).check()
        return FleetRunner(shared_fleet(self.tracker), repeats, min_repeat_ms, self.threads)

    def space(self, func: tvm.tirx.PrimFunc) -> ms.space_generator.SpaceGenerator:
        return cpu_space(func, NEON, self.threads)

    def default_schedule(self, func: tvm.tirx.PrimFunc) -> tvm.s_tir.Schedule | None:
        return cpu_default_schedule(func, NEON, self.threads)

    def finish(self, module: tvm.IRModule) -> tvm.IRModule:
        return PrefetchWeights()(module)

    def compiling(self) -> AbstractContextManager[object]:
        return self.tvm_target


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
    """64-bit Arm boards, which must be alike, behind ``key`` at the ``tracker``; with neither, to compile only.

    tracker: "host:port" of TVM's RPC tracker. device: one of TVM's tags, such as "raspberry-pi/4b-aarch64"
    (``arm_devices``). mcpu: LLVM's name of the processor, "cortex-a72" say, in place of the tag's; with neither of
    the two, a board is asked for its processor, and without a board the code runs on any 64-bit Arm. threads: of
    TVM's runtime on the board, up to its cores where the tag tells them. cc: name or path of a C compiler that links
    for the board; None takes GNU's (Debian's gcc-aarch64-linux-gnu).

    Kernels are scheduled for NEON: 4 float32 lanes, 32 registers; SVE, where a processor has it, stays unused.
    A key with the word "emulated" marks everything that is measured there as emulated.

    Raises TargetError for an unknown device or processor, threads out of range, one of tracker and key without the
    other, and where a board is asked and none answers; MissingCompiler where nothing links for the board.
    """
    if (tracker is None) != (key is None):
        raise TargetError(f"tracker={tracker!r} and key={key!r} belong together: give both, or neither to compile only")
    kind = ArmDevice() if device is None else find_device(device)
    _check_threads(threads, kind.cores, device)
    cc = find_cross_compiler(kind.triple, cc)
    boards = None if tracker is None else parse_tracker(tracker, key)
    if mcpu is None and device is None and boards is not None:
        mcpu = processor_of(boards)
    if mcpu is not None:
        check_mcpu(mcpu, kind.triple)
        kind = replace(kind, mcpu=mcpu)
    return ArmTarget(_name(kind, threads, key), kind, threads, cc, boards)


def _check_threads(threads: int, cores: int | None, device: str | None) -> None:
    """cores: None where nobody knows yet; a board that has too few says so."""
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
