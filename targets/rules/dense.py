"""Dense layers, [M, K] by constant weights [K, N], with vectors along N."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.tirx import IterVar

from hapi_tvm.targets.rules.blocks import child_blocks, is_reduction, parallelise_outer, static_extent
from hapi_tvm.targets.rules.conv2d import prepare
from hapi_tvm.targets.rules.tiles import divisors
from hapi_tvm.targets.rules.vectors import VectorUnit

__all__ = ["Dense", "find_dense", "schedule_dense"]

# Inputs whose weights are read without a branch between them.
UNROLLED_INPUTS = 2
# Multiply-adds below which a parallel launch costs more than it saves.
PARALLEL_MINIMUM = 1 << 16


@dataclass(frozen=True, slots=True)
class Dense:
    """Where a kernel multiplies matrices. inputs: K. outputs: N."""

    block: SBlockRV
    inputs: int
    outputs: int


def find_dense(schedule: Schedule) -> Dense | None:
    """The one matrix product of a kernel whose weights lie along the outputs; None without one."""
    reductions = [block for block in child_blocks(schedule) if is_reduction(schedule, block)]
    if len(reductions) != 1:
        return None
    definition = schedule.get(reductions[0])
    variables = definition.iter_vars
    if [var.iter_type for var in variables] != [IterVar.DataPar, IterVar.DataPar, IterVar.CommReduce]:
        return None
    _, output, summed = variables
    wanted = [summed.var, output.var]
    indices = [[axis.min for axis in region.region] for region in definition.reads]
    if not any(
        len(index) == 2 and all(one.same_as(other) for one, other in zip(index, wanted, strict=True))
        for index in indices
    ):
        return None
    return Dense(reductions[0], static_extent(summed), static_extent(output))


def schedule_dense(schedule: Schedule, dense: Dense, unit: VectorUnit, threads: int) -> None:
    """Apply the rule in place: weights are read once, in whole vectors; the bias follows each tile."""
    _, epilogue = prepare(schedule, dense.block)
    row, column, summed = schedule.get_loops(dense.block)
    width = _vector(dense.outputs, unit.lanes)
    vectors = divisors(dense.outputs // width, _max_vectors(unit.registers))[-1]
    column, side, vector = schedule.split(column, [None, vectors, width])
    summed, unrolled = schedule.split(summed, [None, divisors(dense.inputs, UNROLLED_INPUTS)[-1]])
    schedule.reorder(row, column, summed, unrolled, side, vector)
    schedule.vectorize(vector)
    schedule.unroll(side)
    schedule.unroll(unrolled)
    if epilogue is not None:
        schedule.reverse_compute_at(epilogue, column, preserve_unit_loops=True)
        _, last = schedule.split(schedule.get_loops(epilogue)[-1], [None, width])
        schedule.vectorize(last)
    parallel = dense.inputs * dense.outputs >= PARALLEL_MINIMUM
    parallelise_outer(schedule, [row, column], threads if parallel else 1)
    schedule.decompose_reduction(dense.block, summed)


def _max_vectors(registers: int) -> int:
    """Vectors of sums side by side, about as many as there are ``registers``.

    The weights are read once and come from afar; the more of a row is read at a time, the fewer of its
    pages are visited, and visited again. 25 vectors of 8 lanes took half the time of 5.
    """
    return max(1, registers - 4)


def _vector(outputs: int, lanes: int) -> int:
    """The divisor that fills vectors best; one that is no power of two costs about two instructions."""
    widths = divisors(outputs, lanes)
    return max(widths, key=lambda width: (width if width & (width - 1) == 0 else width / 2, width))
