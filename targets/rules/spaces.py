"""What tuning chooses from: MetaSchedule spaces of our rules, and its own rules for all other kernels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.rules.conv2d import find_convolution
from hapi_tvm.targets.rules.direct import schedule_convolution
from hapi_tvm.targets.rules.tiles import Tile, tile_families
from hapi_tvm.targets.rules.vectors import VectorUnit
from hapi_tvm.targets.rules.winograd import WinogradTile, find_winograd, schedule_winograd, winograd_families

__all__ = ["convolution_space", "stock_space", "winograd_space"]

logger = logging.getLogger(__name__)

Family = TypeVar("Family", Tile, WinogradTile)


def convolution_space(unit: VectorUnit, threads: int) -> ms.space_generator.SpaceGenerator:
    """Register tiles: a space for each family, the columns of a tile sampled within it.

    Padding goes by blocks of rows and, where that differs, all at first.
    """

    def spaces(schedule: s_tir.Schedule) -> list[s_tir.Schedule]:
        families = tile_families(find_convolution(schedule), unit, threads)
        families += [replace(family, row_tiles=None) for family in families if family.row_tiles is not None]
        return _spaces(schedule, families, sample)

    def sample(space: s_tir.Schedule, family: Tile) -> None:
        convolution = find_convolution(space)
        column = space.get_loops(convolution.block)[3]
        _, columns = space.sample_perfect_tile(column, n=2, max_innermost_factor=family.columns)
        schedule_convolution(space, convolution, replace(family, columns=columns), unit.lanes, threads)

    return _generator(spaces)


def winograd_space(unit: VectorUnit, threads: int) -> ms.space_generator.SpaceGenerator:
    """Blocks of tiles and of channels: a space for each family, the columns of the product sampled in it."""

    def spaces(schedule: s_tir.Schedule) -> list[s_tir.Schedule]:
        return _spaces(schedule, winograd_families(find_winograd(schedule), unit, threads), sample)

    def sample(space: s_tir.Schedule, family: WinogradTile) -> None:
        schedule_winograd(space, find_winograd(space), family, unit.lanes, threads, sample=True)

    return _generator(spaces)


def _generator(
    spaces: Callable[[s_tir.Schedule], list[s_tir.Schedule]],
) -> ms.space_generator.SpaceGenerator:
    return ms.space_generator.ScheduleFn(
        spaces,
        sch_rules=[],
        postprocs=[ms.postproc.DisallowDynamicLoop()],
        mutator_probs={ms.mutator.MutateTileSize(): 1.0},
    )


def stock_space(lanes: int, threads: int) -> ms.space_generator.SpaceGenerator:
    """MetaSchedule's space for CPUs."""
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


def _spaces(
    schedule: s_tir.Schedule, families: Sequence[Family], sample: Callable[[s_tir.Schedule, Family], None]
) -> list[s_tir.Schedule]:
    """One space for each family that fits the kernel; the kernel as it is where none does."""
    spaces = []
    for family in families:
        space = schedule.copy()
        try:
            sample(space, family)
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
