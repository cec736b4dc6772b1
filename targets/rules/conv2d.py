"""Direct convolution with a register tile, for blocked (NCHW16c) and plain (NCHW) layouts.

The loop order is NeoCPU's template (Liu et al., ATC 2019) as far as TVM's own documents describe it;
the tile choice is ours:

    batch, channel, row, column tiles | input channel, kernel row, kernel column | the tile

The tile's accumulators stay in vector registers while the three reduction loops run. The channel block
is the vector in the blocked layout, a part of the column in the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import s_tir
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, SBlockRV
from tvm.tirx import IterVar

from hapi_tvm.targets.rules.blocks import (
    child_blocks,
    inline_around,
    is_reduction,
    parallelise_outer,
    static_extent,
    vectorise_last,
)

__all__ = [
    "MAX_ACCUMULATORS",
    "Convolution",
    "Tile",
    "default_tile",
    "find_convolution",
    "schedule_convolution",
    "tile_families",
]

# With 28 accumulators LLVM spills, at half the speed; with 14 to 16 it reaches the machine's peak
# (TVM 0.27.0.post1, AVX-512). Above 16 the search would only find slow candidates.
MAX_ACCUMULATORS = 16


@dataclass(frozen=True, slots=True)
class Tile:
    """channels: channel blocks (plain: channels); rows, columns: outputs. One iteration computes them all."""

    channels: int
    rows: int
    columns: int | ExprRV


@dataclass(frozen=True, slots=True)
class Convolution:
    """Where a kernel convolves. Axes index the loops of ``block``: batch, channel, row, column, ...

    plain: NCHW; else the last spatial axis is the channel block, the vector.
    """

    block: SBlockRV
    channels: int
    rows: int
    columns: int
    plain: bool

    @property
    def column_axis(self) -> int:
        return 3


def find_convolution(schedule: Schedule) -> Convolution | None:
    """The one convolution of a kernel, found by its iteration pattern.

    Four spatial axes and three reductions are NCHW; a fifth spatial axis is the channel block; two
    reductions (kernel row and column) are a depthwise convolution or a pooling, which share the order.
    None for anything else, such as a kernel with several reductions.
    """
    reductions = [block for block in child_blocks(schedule) if is_reduction(schedule, block)]
    if len(reductions) != 1:
        return None
    variables = schedule.get(reductions[0]).iter_vars
    kinds = [var.iter_type for var in variables]
    spatial = kinds.count(IterVar.DataPar)
    reduced = kinds.count(IterVar.CommReduce)
    if spatial not in (4, 5) or reduced not in (2, 3) or kinds[:spatial] != [IterVar.DataPar] * spatial:
        return None
    _, channels, rows, columns, *block = (static_extent(var) for var in variables[:spatial])
    if (block and block[0] == 1) or rows * columns == 1 and not block:
        return None
    return Convolution(reductions[0], channels, rows, columns, plain=not block)


def _divisors(extent: int, limit: int) -> list[int]:
    return [factor for factor in range(1, min(extent, limit) + 1) if extent % factor == 0]


def tile_families(convolution: Convolution, lanes: int) -> list[Tile]:
    """Tiles by channels and rows, each with the largest columns it may have, the most promising first.

    Promising: more accumulators hide the latency of a multiply-add (8 are needed: two ports, 4 cycles);
    among equals more channels reuse each input, and fewer rows touch fewer lines.
    """
    families = []
    for channels in _divisors(convolution.channels, MAX_ACCUMULATORS):
        for rows in _divisors(convolution.rows, MAX_ACCUMULATORS // channels):
            room = lanes if convolution.plain else MAX_ACCUMULATORS // (channels * rows)
            families.append(Tile(channels, rows, _divisors(convolution.columns, room)[-1]))

    def promise(tile: Tile) -> tuple[int, int, int]:
        columns = 1 if convolution.plain else tile.columns
        accumulators = tile.channels * tile.rows * columns
        return (-accumulators, tile.rows, abs(tile.channels - 2))

    return sorted(families, key=promise)


def default_tile(convolution: Convolution, lanes: int) -> Tile:
    """The tile to use without any trial."""
    return tile_families(convolution, lanes)[0]


def schedule_convolution(schedule: Schedule, convolution: Convolution, tile: Tile, lanes: int, threads: int) -> None:
    """Apply the rule in place. The epilogue (bias, residual, activation) runs on each tile while it is hot.

    Raises ScheduleError where the kernel does not have the form that ``find_convolution`` promised.
    """
    block = convolution.block
    padding = _padding(schedule, block)
    inline_around(schedule, [block, *padding])
    epilogue = _epilogue(schedule, block)
    batch, channel, row, column, *rest = schedule.get_loops(block)
    vector = [] if convolution.plain else [rest.pop(0)]
    channel, channel_tile = schedule.split(channel, [None, tile.channels])
    row, row_tile = schedule.split(row, [None, tile.rows])
    column, column_tile = schedule.split(column, [None, tile.columns])
    inner = [channel_tile, row_tile, column_tile, *vector]
    schedule.reorder(batch, channel, row, column, *rest, *inner)
    schedule.vectorize(inner[-1])
    for loop in inner[:-1]:
        schedule.unroll(loop)
    if epilogue is not None:
        _fuse_epilogue(schedule, epilogue, column, lanes)
    # A decomposed reduction no longer counts as one, and TVM refuses to run its loops in parallel.
    parallelise_outer(schedule, [batch, channel, row], threads)
    schedule.decompose_reduction(block, rest[0])
    for pad in padding:
        vectorise_last(schedule, pad, lanes)
        parallelise_outer(schedule, schedule.get_loops(pad)[:3], threads)


def _padding(schedule: Schedule, block: SBlockRV) -> list[SBlockRV]:
    """The direct producers that pad: inlined, their test would run once for each multiply-add."""
    return [
        producer
        for producer in schedule.get_producers(block)
        if not is_reduction(schedule, producer) and "if_then_else" in str(schedule.get(producer).body)
    ]


def _epilogue(schedule: Schedule, block: SBlockRV) -> SBlockRV | None:
    """The one block behind the convolution, once the rest is inlined; a copy where it writes the output.

    None where several blocks read the convolution: they stay behind it.
    """
    consumers = schedule.get_consumers(block)
    if not consumers:
        return schedule.cache_write(block, 0, "global")
    return consumers[0] if len(consumers) == 1 else None


def _fuse_epilogue(schedule: Schedule, epilogue: SBlockRV, column, lanes: int) -> None:
    """Move the epilogue to the tile. One whose index pattern forbids it (a flatten) stays behind."""
    try:
        # Without unit loops, a replayed trace with other tiles would find another number of loops.
        schedule.reverse_compute_at(epilogue, column, preserve_unit_loops=True)
    except s_tir.ScheduleError:
        vectorise_last(schedule, epilogue, lanes)
        return
    *outer, last = schedule.get_loops(epilogue)[4:]
    schedule.vectorize(last)
    for loop in outer:
        schedule.unroll(loop)
