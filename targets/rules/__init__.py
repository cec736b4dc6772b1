"""Schedules for CPU kernels: which rule serves which kernel, tuned and untuned."""

from __future__ import annotations

import logging

import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.rules.blocks import traced
from hapi_tvm.targets.rules.conv2d import (
    MAX_ACCUMULATORS,
    Tile,
    default_tile,
    find_convolution,
    schedule_convolution,
    tile_families,
)
from hapi_tvm.targets.rules.plain import schedule_plain

__all__ = ["cpu_default_schedule", "cpu_space"]

logger = logging.getLogger(__name__)


def cpu_default_schedule(func: tvm.tirx.PrimFunc, lanes: int, threads: int) -> s_tir.Schedule | None:
    """A good schedule without any trial; None where the kernel is best left as it is."""
    schedule = traced(func)
    try:
        convolution = find_convolution(schedule)
        if convolution is None:
            return schedule_plain(schedule, lanes, threads)
        schedule_convolution(schedule, convolution, default_tile(convolution, lanes), lanes, threads)
    except s_tir.ScheduleError as error:
        logger.debug("the default rule does not fit %s: %s", func.attrs, error)
        return None
    return schedule


def cpu_space(func: tvm.tirx.PrimFunc, lanes: int, threads: int) -> ms.space_generator.SpaceGenerator:
    """The blocked-convolution rule with sampled tiles where it fits, else the stock rules of MetaSchedule."""
    mutators = {ms.mutator.MutateTileSize(): 1.0}
    if find_convolution(traced(func)) is not None:
        return ms.space_generator.ScheduleFn(
            lambda schedule: _convolution_spaces(schedule, lanes, threads),
            sch_rules=[],
            postprocs=[ms.postproc.DisallowDynamicLoop()],
            mutator_probs=mutators,
        )
    return ms.space_generator.PostOrderApply(
        sch_rules=_stock_rules(lanes, threads),
        postprocs=[
            ms.postproc.DisallowDynamicLoop(),
            ms.postproc.RewriteParallelVectorizeUnroll(),
            ms.postproc.RewriteReductionBlock(),
        ],
        mutator_probs={
            ms.mutator.MutateTileSize(): 0.7,
            ms.mutator.MutateComputeLocation(): 0.1,
            ms.mutator.MutateUnroll(): 0.2,
        },
    )


def _convolution_spaces(schedule: s_tir.Schedule, lanes: int, threads: int) -> list[s_tir.Schedule]:
    """One space for each family of tiles that keeps its accumulators in registers."""
    spaces = []
    for family in tile_families(find_convolution(schedule), lanes):
        space = schedule.copy()
        convolution = find_convolution(space)
        column = space.get_loops(convolution.block)[convolution.column_axis]
        limit = lanes if convolution.plain else MAX_ACCUMULATORS // (family.channels * family.rows)
        _, columns = space.sample_perfect_tile(column, n=2, max_innermost_factor=limit)
        tile = Tile(family.channels, family.rows, columns)
        try:
            schedule_convolution(space, convolution, tile, lanes, threads)
        except s_tir.ScheduleError as error:
            logger.debug("no space for %s: %s", family, error)
            continue
        spaces.append(space)
    return spaces or [schedule]


def _stock_rules(lanes: int, threads: int) -> list[ms.schedule_rule.ScheduleRule]:
    """MetaSchedule's rules for LLVM (its ``DefaultLLVM``), without parallel loops on one thread:
    a parallel launch costs more than these small kernels.
    """
    rule = ms.schedule_rule
    return [
        rule.InlineConstantScalars(),
        rule.AutoInline(
            into_producer=False,
            into_consumer=True,
            inline_const_tensor=True,
            disallow_if_then_else=True,
            require_injective=True,
            require_ordered=True,
            disallow_op=["tirx.exp"],
        ),
        rule.AddRFactor(max_jobs_per_core=16, max_innermost_factor=64),
        rule.MultiLevelTiling(
            structure="SSRSRS",
            tile_binds=None,
            max_innermost_factor=64,
            vector_load_lens=None,
            reuse_read=None,
            reuse_write=rule.ReuseType(req="may", levels=[1, 2], scope="global"),
        ),
        rule.ParallelizeVectorizeUnroll(
            max_jobs_per_core=16 if threads > 1 else -1,
            max_vectorize_extent=4 * lanes,
            unroll_max_steps=[0, 16, 64, 512],
            unroll_explicit=True,
        ),
        rule.RandomComputeLocation(),
    ]
