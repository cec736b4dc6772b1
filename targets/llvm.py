"""The CPU of this machine, or of boards like it, compiled for by LLVM."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import tvm
from tvm.s_tir import meta_schedule as ms
from tvm.target import codegen

from hapi_tvm.errors import TargetError
from hapi_tvm.processor import flags_of, missing_flags
from hapi_tvm.targets.forkserver_builder import ForkServerBuilder
from hapi_tvm.targets.forkserver_runner import ForkServerRunner
from hapi_tvm.targets.reach import Reach, ThisMachine
from hapi_tvm.targets.rpc.boards import Boards
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.targets.rpc.processor import processor_of
from hapi_tvm.targets.rpc.runner import FleetRunner
from hapi_tvm.targets.rpc.tracker import Tracker, parse_tracker
from hapi_tvm.targets.rules import cpu_default_schedule, cpu_space
from hapi_tvm.targets.rules.prefetch import PrefetchWeights
from hapi_tvm.targets.rules.vectors import AVX2, AVX512, NEON, SSE, VectorUnit

__all__ = ["LlvmTarget", "llvm"]

logger = logging.getLogger(__name__)

VECTOR_WIDTHS = (4, 8, 16)
GENERIC = "generic"
# Where LLVM's name of this machine promises what the machine lacks (a virtual one may hide instructions).
BASELINES = ("x86-64-v4", "x86-64-v3", "x86-64-v2", GENERIC)


@dataclass(frozen=True, slots=True)
class LlvmTarget:
    """A ``Target``: this machine's CPU, or that of the boards behind ``tracker``, with ``threads`` threads.

    mcpu: LLVM's name of the processor. vector_width: float32 lanes, which channel blocks and tiles go by.
    """

    name: str
    mcpu: str
    threads: int
    vector_width: int
    tracker: Tracker | None = None

    @property
    def tvm_target(self) -> tvm.target.Target:
        return _tvm_target(self.mcpu, self.threads)

    @property
    def needed_flags(self) -> tuple[str, ...]:
        return flags_of(_features(self.mcpu))

    @property
    def reach(self) -> Reach:
        return ThisMachine(self.threads) if self.tracker is None else Boards(self.tracker, self.threads)

    def builder(self) -> ForkServerBuilder:
        return ForkServerBuilder(workers=usable_cores())

    def runner(self, repeats: int = 5, min_repeat_ms: int = 2) -> ms.runner.PyRunner:
        if self.tracker is None:
            return ForkServerRunner(self.threads, repeats, min_repeat_ms)
        return FleetRunner(shared_fleet(self.tracker), repeats, min_repeat_ms, self.threads)

    def space(self, func: tvm.tirx.PrimFunc) -> ms.space_generator.SpaceGenerator:
        return cpu_space(func, self._vectors, self.threads)

    def default_schedule(self, func: tvm.tirx.PrimFunc) -> tvm.s_tir.Schedule | None:
        return cpu_default_schedule(func, self._vectors, self.threads)

    def finish(self, module: tvm.IRModule) -> tvm.IRModule:
        return PrefetchWeights()(module)

    def compiling(self) -> AbstractContextManager[object]:
        return self.tvm_target

    @property
    def _vectors(self) -> VectorUnit:
        return _vector_unit(self.mcpu).with_lanes(self.vector_width)


def usable_cores() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tvm_target(mcpu: str, threads: int = 1) -> tvm.target.Target:
    return tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": threads})


def _features(mcpu: str) -> frozenset[str]:
    """What LLVM may use when it compiles for a processor, in LLVM's names."""
    return frozenset(str(name) for name in codegen.llvm_get_cpu_features(_tvm_target(mcpu)))


def _vector_unit(mcpu: str) -> VectorUnit:
    """The widest registers that a processor computes in."""
    units = {"avx512f": AVX512, "avx2": AVX2, "neon": NEON}
    features = _features(mcpu)
    return next((unit for feature, unit in units.items() if feature in features), SSE)


def _known_processors() -> list[str]:
    """What LLVM knows for this machine's architecture, without processors that lack its 64-bit mode."""
    with tvm.target.Target({"kind": "llvm"}):
        known = sorted(str(name) for name in codegen.llvm_get_cpu_archlist())
    if not str(codegen.llvm_get_system_triple()).startswith("x86_64"):
        return known
    return [name for name in known if name == GENERIC or "64bit" in _features(name)]


def _check_known(mcpu: str) -> None:
    known = _known_processors()
    if mcpu not in known:
        near = difflib.get_close_matches(mcpu, known, n=5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise TargetError(
            f"mcpu={mcpu!r} is none of the {len(known)} processors that LLVM knows for this machine: {hint}"
            f"leave mcpu out to take the one of this machine, or give mcpu={GENERIC!r} for any machine of its "
            f"kind. Known are {', '.join(known)}"
        )


def _check_runs_here(mcpu: str) -> None:
    if missing := missing_flags(flags_of(_features(mcpu))):
        raise TargetError(
            f"mcpu={mcpu!r} has instructions that this machine lacks, and kernels are run here: "
            f"{', '.join(missing)}. Leave mcpu out, or take mcpu={_runnable(BASELINES)!r}, which runs here"
        )


def _runnable(names: Sequence[str]) -> str:
    """The first of ``names`` that LLVM knows and this machine can run."""
    known = _known_processors()
    return next(name for name in names if name in known and not missing_flags(flags_of(_features(name))))


def _this_processor() -> str:
    found = str(codegen.llvm_get_system_cpu())
    chosen = _runnable((found, *BASELINES))
    if chosen != found:
        logger.warning("LLVM takes this processor for %s, which it is not in full: mcpu=%s serves", found, chosen)
    return chosen


def llvm(
    threads: int = 1,
    mcpu: str | None = None,
    vector_width: int | None = None,
    *,
    tracker: str | None = None,
    key: str | None = None,
) -> LlvmTarget:
    """The CPU of this machine, or with tracker and key that of boards of this machine's architecture.

    threads: 1 up to the cores. mcpu: LLVM's name of the processor; None takes the one found, "generic" the least of
    its architecture (SSE2 on x86-64, NEON on AArch64: 4 lanes), for a library that is to run on any such machine.
    vector_width: float32 lanes, 4, 8 or 16; None takes those of ``mcpu``'s widest registers.
    tracker: "host:port" of TVM's RPC tracker. key: of the boards there, which must be alike: one of them is asked for
    its processor, unless mcpu tells. What is tuned and measured on them is kept by key.

    Raises TargetError for threads or a width out of range, for a processor that LLVM does not know or whose
    instructions this machine lacks, for one of tracker and key without the other, and where no board answers.
    """
    if (tracker is None) != (key is None):
        raise TargetError(
            f"tracker={tracker!r} and key={key!r} belong together: give both, or neither for this machine"
        )
    _check_width(vector_width)
    if tracker is None:
        _check_threads(threads, usable_cores())
        mcpu = _mcpu_here(mcpu)
        boards = None
    else:
        _check_threads(threads, None)
        boards = parse_tracker(tracker, key)
        mcpu = processor_of(boards) if mcpu is None else mcpu
        _check_known(mcpu)
    width = _vector_unit(mcpu).lanes if vector_width is None else vector_width
    return LlvmTarget(_name(mcpu, threads, vector_width, key), mcpu, threads, width, boards)


def _name(mcpu: str, threads: int, vector_width: int | None, key: str | None) -> str:
    """Everything that kernels and their figures depend on."""
    lanes = "" if vector_width is None else f" lanes={vector_width}"
    return f"llvm {mcpu} threads={threads}{lanes}" + ("" if key is None else f" key={key}")


def _mcpu_here(mcpu: str | None) -> str:
    if mcpu is None:
        return _this_processor()
    _check_known(mcpu)
    _check_runs_here(mcpu)
    return mcpu


def _check_threads(threads: int, cores: int | None) -> None:
    """cores: None where nobody knows yet; a board that has too few says so."""
    if cores is not None and not 1 <= threads <= cores:
        raise TargetError(f"threads={threads} must lie in 1..{cores}, the cores that this process may use")
    if threads < 1:
        raise TargetError(f"threads={threads} must be at least 1")


def _check_width(vector_width: int | None) -> None:
    if vector_width is not None and vector_width not in VECTOR_WIDTHS:
        widths = ", ".join(map(str, VECTOR_WIDTHS))
        raise TargetError(
            f"vector_width={vector_width!r} must be one of {widths} float32 lanes; leave it out to take the processor's"
        )
