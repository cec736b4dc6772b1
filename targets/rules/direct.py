"""Direct convolution with a register tile, for blocked (NCHW16c) and plain (NCHW) layouts.

The loop order is NeoCPU's template (Liu et al., ATC 2019) as far as TVM's own documents describe it;
blocks of rows and the tile choice are ours:

    batch, block of rows | padding of these rows | channel, row, column tiles
    | input channel, kernel row, kernel column | the tile

The tile's accumulators stay in vector registers while the three reduction loops run. The channel block
is the vector in the blocked layout, a part of the column in the plain one.
"""

from __future__ import annotations

import math

from tvm import s_tir
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from hapi_tvm.targets.rules.blocks import parallelise_outer, vectorise_last
from hapi_tvm.targets.rules.conv2d import Convolution, prepare
from hapi_tvm.targets.rules.tiles import Tile, divisors

__all__ = ["schedule_convolution"]

# The places of a depthwise window that are unrolled, at most: 5x5.
MAX_UNROLLED_WINDOW = 25
# Channels of a 1x1 convolution that are summed without a branch between them.
UNROLLED_INPUTS = 4


def schedule_convolution(
    schedule: Schedule, convolution: Convolution, tile: Tile, lanes: int, threads: int
) -> None:
    """Apply the rule in place. The epilogue (bias, residual, activation) runs on each tile while it is hot.

    Raises ScheduleError where the kernel does not have the form that ``find_convolution`` promised.
    """
    block = convolution.block
    padding, epilogue = prepare(schedule, block)
    batch, channel, row, column, *rest = schedule.get_loops(block)
    vector = [] if convolution.plain else [rest.pop(0)]
    if convolution.pointwise and convolution.input_block > 1:
        rest = _split_inputs(schedule, convolution, rest)
    channel, channel_tile = schedule.split(channel, [None, tile.channels])
    row, row_tile = schedule.split(row, [None, tile.rows])
    column, column_tile = schedule.split(column, [None, tile.columns])
    row_block, row = schedule.split(row, [1, None] if tile.row_tiles is None else [None, tile.row_tiles])
    inner = [channel_tile, row_tile, column_tile, *vector]
    if convolution.inputs is None:
        schedule.reorder(batch, channel, row_block, row, column, *rest, *inner)
        outer = [batch, channel, row_block]
    else:
        schedule.reorder(batch, row_block, channel, row, column, *rest, *inner)
        outer = [batch, row_block] if tile.row_tiles is not None else [batch, row_block, channel, row]
    schedule.vectorize(inner[-1])
    for loop in inner[:-1]:
        schedule.unroll(loop)
    if epilogue is not None:
        _fuse_epilogue(schedule, epilogue, column, lanes)
    # A decomposed reduction no longer counts as one, and TVM refuses to run its loops in parallel.
    outermost = parallelise_outer(schedule, outer, threads)
    _place_padding(schedule, padding, None if tile.row_tiles is None else outermost, lanes, threads)
    schedule.decompose_reduction(block, rest[0])
    if convolution.inputs is None:
        _unroll_window(schedule, convolution, rest)


def _split_inputs(schedule: Schedule, convolution: Convolution, reductions: list[LoopRV]) -> list[LoopRV]:
    """The loops over the inputs of a 1x1 convolution as blocks and lanes, a few lanes unrolled.

    As one loop, each channel pays for its block's number and its lane: 8 of the 33 instructions that 14
    multiply-adds take. Where the last block is padded, its lanes beyond the channels are not read.
    """
    inputs, *window = reductions
    width = convolution.input_block
    unrolled = divisors(math.gcd(width, convolution.inputs), UNROLLED_INPUTS)[-1]
    if convolution.inputs % width:
        groups, unrolled_lane = schedule.split(inputs, [None, unrolled])
        schedule.unroll(unrolled_lane)
        return [groups, *window, unrolled_lane]
    block, lane, unrolled_lane = schedule.split(inputs, [None, width // unrolled, unrolled])
    schedule.unroll(unrolled_lane)
    return [block, lane, *window, unrolled_lane]


def _place_padding(
    schedule: Schedule, padding: list[SBlockRV], rows: LoopRV | None, lanes: int, threads: int
) -> None:
    """Pad inside the loop ``rows`` what one of its iterations reads; without it, everything at first."""
    for pad in padding:
        if rows is not None:
            schedule.compute_at(pad, rows, preserve_unit_loops=True)
        vectorise_last(schedule, pad, lanes)
        if rows is None:
            parallelise_outer(schedule, schedule.get_loops(pad)[:3], threads)


def _unroll_window(schedule: Schedule, convolution: Convolution, window: list[LoopRV]) -> None:
    """Unrolled, neighbouring outputs of a depthwise window share the inputs and the weights they read."""
    kernel_rows, kernel_columns = convolution.window
    if kernel_columns <= MAX_UNROLLED_WINDOW:
        schedule.unroll(window[-1])
    if kernel_rows * kernel_columns <= MAX_UNROLLED_WINDOW:
        schedule.unroll(window[-2])


def _fuse_epilogue(schedule: Schedule, epilogue: SBlockRV, column: LoopRV, lanes: int) -> None:
    """Move the epilogue to the tile. One whose index pattern forbids it (a flatten) stays behind."""
    try:
        # Without unit loops, a replayed trace with other tiles would find another number of loops.
        schedule.reverse_compute_at(epilogue, column, preserve_unit_loops=True)
    except s_tir.ScheduleError:
        vectorise_last(schedule, epilogue, lanes)
        return
    *outer, last = schedule.get_loops(epilogue)[5:]
    schedule.vectorize(last)
    for loop in outer:
        schedule.unroll(loop)
