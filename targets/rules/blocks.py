"""Questions about the blocks of a kernel, and the steps that several rules share."""

from __future__ import annotations

import tvm
from tvm import s_tir
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.tirx import IterVar

from hapi_tvm.tvm_compat import private_copy

__all__ = [
    "child_blocks",
    "inline_around",
    "is_reduction",
    "parallelise_outer",
    "spatial_extents",
    "static_extent",
    "traced",
    "vectorise_last",
]


def traced(func: tvm.tirx.PrimFunc) -> Schedule:
    """A schedule of a copy of ``func`` that records its trace."""
    return Schedule(private_copy(tvm.IRModule({"main": func.with_attr("global_symbol", "main")})))


def child_blocks(schedule: Schedule) -> list[SBlockRV]:
    """The blocks of the kernel in the order of execution, without the root."""
    return schedule.get_child_blocks(schedule.get_sblock("root", func_name="main"))


def is_reduction(schedule: Schedule, block: SBlockRV) -> bool:
    return any(var.iter_type == IterVar.CommReduce for var in schedule.get(block).iter_vars)


def static_extent(var: IterVar) -> int:
    return int(var.dom.extent)


def spatial_extents(schedule: Schedule, block: SBlockRV) -> list[int]:
    return [static_extent(var) for var in schedule.get(block).iter_vars if var.iter_type == IterVar.DataPar]


def inline_around(schedule: Schedule, kept: list[SBlockRV]) -> None:
    """Inline every elementwise or broadcast block into its consumers, but for ``kept`` and the outputs.

    A block that TVM cannot inline (several writes, no single consumer pattern) stays.
    """
    names = {schedule.get(block).name_hint for block in kept}
    for block in child_blocks(schedule):
        if schedule.get(block).name_hint in names or is_reduction(schedule, block):
            continue
        if not schedule.get_consumers(block):
            continue
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue


def parallelise_outer(schedule: Schedule, loops: list[LoopRV], threads: int) -> LoopRV:
    """Run the fused ``loops`` on TVM's threads; left alone on one thread, where a launch only costs.

    Returns the loop that is inside all of them.
    """
    if threads == 1:
        return loops[-1]
    fused = schedule.fuse(*loops) if len(loops) > 1 else loops[0]
    schedule.parallel(fused)
    return fused


def vectorise_last(schedule: Schedule, block: SBlockRV, lanes: int) -> bool:
    """Vectorise the innermost loop by ``lanes`` where its extent is a multiple, or fits whole in a vector."""
    last = schedule.get_loops(block)[-1]
    extent = schedule.get(last).extent
    if not isinstance(extent, tvm.tirx.IntImm | int) or int(extent) == 1:
        return False
    if int(extent) % lanes == 0 and int(extent) > lanes:
        _, last = schedule.split(last, [None, lanes])
    elif int(extent) > lanes:
        return False
    schedule.vectorize(last)
    return True
