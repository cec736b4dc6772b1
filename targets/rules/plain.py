"""Untuned schedules for what has no rule of its own: means, softmax, elementwise chains."""

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
from hapi_tvm.targets.rules.tiles import divisors

__all__ = ["schedule_plain"]

# Below this many outputs a parallel launch (several microseconds) costs more than it saves.
PARALLEL_MINIMUM = 1 << 14
# Sums side by side hide the latency of an addition.
MAX_SUMS = 8


def schedule_plain(schedule: Schedule, lanes: int, threads: int) -> Schedule:
    """Inline what can be, then vectorise each block along its innermost output axis. In place.

    A reduction whose innermost output axis fills vectors gets that axis innermost, so it accumulates
    vectors, several side by side; any other keeps its loops.
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
    loops = schedule.get_loops(block)[:-kept]
    if outputs >= PARALLEL_MINIMUM and loops:
        parallelise_outer(schedule, loops, threads)


def _schedule_reduction(schedule: Schedule, block: SBlockRV, lanes: int) -> None:
    variables = schedule.get(block).iter_vars
    loops = schedule.get_loops(block)
    extents = spatial_extents(schedule, block)
    if len(loops) != len(variables) or not extents or extents[-1] == 1:
        return
    if extents[-1] > lanes and extents[-1] % lanes:
        return
    spatial = [loop for loop, var in zip(loops, variables, strict=True) if var.iter_type == IterVar.DataPar]
    reduced = [loop for loop, var in zip(loops, variables, strict=True) if var.iter_type != IterVar.DataPar]
    outer, vector = schedule.split(spatial.pop(), [None, min(lanes, extents[-1])])
    # The sums side by side are those of the innermost axis that has several: channel blocks, for a mean.
    axis = max((index for index, extent in enumerate(extents[:-1]) if extent > 1), default=None)
    side = []
    if axis is not None:
        spatial[axis], sums = schedule.split(spatial[axis], [None, divisors(extents[axis], MAX_SUMS)[-1]])
        side.append(sums)
    schedule.reorder(*spatial, outer, *reduced, *side, vector)
    schedule.vectorize(vector)
    for loop in side:
        schedule.unroll(loop)
    schedule.decompose_reduction(block, reduced[0])
