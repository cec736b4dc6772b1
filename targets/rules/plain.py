"""Untuned schedules for what is no convolution: poolings, means, dense layers, elementwise chains."""

from __future__ import annotations

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.tirx import IterVar

from hapi_tvm.targets.rules.blocks import (
    child_blocks,
    inline_around,
    is_reduction,
    parallelise_outer,
    spatial_extents,
    vectorise_last,
)

__all__ = ["schedule_plain"]

# Below this many outputs a parallel launch (several microseconds) costs more than it saves.
PARALLEL_MINIMUM = 1 << 14


def schedule_plain(schedule: Schedule, lanes: int, threads: int) -> Schedule:
    """Inline what can be, then vectorise each block along its innermost output axis. In place.

    A reduction whose innermost output axis fills vectors gets that axis innermost, so it accumulates
    vectors; any other keeps its loops.
    """
    inline_around(schedule, [])
    for block in child_blocks(schedule):
        if is_reduction(schedule, block):
            _schedule_reduction(schedule, block, lanes)
        else:
            vectorised = vectorise_last(schedule, block, lanes)
            _parallelise(schedule, block, threads, kept=2 if vectorised else 1)
    return schedule


def _parallelise(schedule: Schedule, block: SBlockRV, threads: int, kept: int) -> None:
    outputs = 1
    for extent in spatial_extents(schedule, block):
        outputs *= extent
    if outputs >= PARALLEL_MINIMUM:
        parallelise_outer(schedule, schedule.get_loops(block)[:-kept], threads)


def _schedule_reduction(schedule: Schedule, block: SBlockRV, lanes: int) -> None:
    variables = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    if len(loops) != len(variables):
        return
    spatial = [loop for loop, var in zip(loops, variables, strict=True) if var.iter_type == IterVar.DataPar]
    reduced = [loop for loop in loops if not any(loop.same_as(other) for other in spatial)]
    extents = spatial_extents(schedule, block)
    if not spatial or extents[-1] % lanes:
        return
    outer, vector = schedule.split(spatial[-1], [None, lanes])
    schedule.reorder(*spatial[:-1], outer, *reduced, vector)
    schedule.vectorize(vector)
    schedule.decompose_reduction(block, reduced[0])
