"""Schedule of Winograd kernels, as ``passes.winograd`` writes them.

    batch, block of tiles
    | channel block: padding of what the tiles read, input transform
    | group of channel blocks: products, then output transform with the epilogue

Each product is a matrix product of tiles by channels, with the register tile of a 1x1 convolution. The figures
in this file were measured on one AVX-512 core with 2 MiB of second cache, TVM 0.27.0.post1. The rules are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV

from hapi_tvm.targets.rules.blocks import (
    child_blocks,
    inline_around,
    parallelise_outer,
    spatial_extents,
    static_extent,
    vectorise_last,
)
from hapi_tvm.targets.rules.tiles import ENOUGH_ACCUMULATORS, MAX_CHANNELS, divisors, max_accumulators
from hapi_tvm.targets.rules.vectors import VectorUnit

__all__ = ["Winograd", "WinogradTile", "find_winograd", "schedule_winograd", "winograd_families"]

STAGES = (
    "winograd_input_rows",
    "winograd_input",
    "winograd_product",
    "winograd_output_rows",
    "conv2d_winograd",
)
# Weights that fit in the second cache are read for each block of a few tiles: as many as fill the registers, for
# what the block transforms takes room beside them. Others are read once, for all tiles of an image: 128 to 128
# channels at 28x28 took 640 us in blocks of 7 tiles, and 514 us in one.
RESIDENT_BYTES = 1 << 20
TILES_A_BLOCK = 8
# Channels summed without a branch or an address between them: 3 to 10 % faster than one at a time.
UNROLLED_CHANNELS = 8
# Work left for the slowest thread, over an even share.
MAX_IMBALANCE = 1.1
MAX_FAMILIES = 8


@dataclass(frozen=True, slots=True)
class WinogradTile:
    """tiles: in a block. A register tile computes columns: tiles, of channels: channel blocks."""

    tiles: int
    channels: int
    columns: int


@dataclass(frozen=True, slots=True)
class Winograd:
    """The stages of a Winograd kernel by name. inputs: channels, in blocks of ``input_lanes``.

    channels: blocks of ``lanes`` outputs. side: a tile has side x side outputs. tiles: in an image, of which
    ``across`` lie in a row.
    """

    stages: dict[str, SBlockRV]
    inputs: int
    input_lanes: int
    channels: int
    lanes: int
    side: int
    tiles: int
    across: int

    @property
    def weight_bytes(self) -> int:
        return 4 * (self.side + 2) ** 2 * self.inputs * self.channels * self.lanes


def find_winograd(schedule: Schedule) -> Winograd | None:
    """The stages of a Winograd convolution, by their names; None where the kernel has none."""
    blocks = {schedule.get(block).name_hint: block for block in child_blocks(schedule)}
    if not all(name in blocks for name in STAGES):
        return None
    stages = {name: blocks[name] for name in STAGES}
    product = stages["winograd_product"]
    _, places, _, channels, tiles, lanes = spatial_extents(schedule, product)
    inputs = static_extent(schedule.get(product).iter_vars[-1])
    input_lanes = spatial_extents(schedule, stages["winograd_input"])[-1]
    side = places - 2
    across = -(-spatial_extents(schedule, stages["conv2d_winograd"])[3] // side)
    return Winograd(stages, inputs, input_lanes, channels, lanes, side, tiles, across)


def winograd_families(winograd: Winograd, unit: VectorUnit, threads: int) -> list[WinogradTile]:
    """Up to ``MAX_FAMILIES``, the most promising first, each with the most columns that fit the registers.

    Promising: threads equally busy; then enough accumulators; then a good size of the block; then two channel
    blocks, which read each input once for two multiply-adds. A block is a part of a row of tiles, or whole rows:
    its padding is then a rectangle.
    """
    resident = winograd.weight_bytes <= RESIDENT_BYTES
    wanted = min(TILES_A_BLOCK, winograd.tiles) if resident else winograd.tiles
    limit = max_accumulators(unit.registers)
    enough = min(ENOUGH_ACCUMULATORS, limit)
    families = [
        WinogradTile(tiles, channels, divisors(tiles, limit // channels)[-1])
        for tiles in divisors(winograd.tiles, winograd.tiles)
        if winograd.across % tiles == 0 or tiles % winograd.across == 0
        for channels in divisors(winograd.channels, MAX_CHANNELS)
    ]

    def promise(family: WinogradTile) -> tuple[bool, int, float, int]:
        blocks = winograd.tiles // family.tiles
        shares = blocks if blocks > 1 else winograd.channels // family.channels
        imbalance = -(-shares // threads) * threads / shares
        accumulators = min(family.channels * family.columns, enough)
        distance = max(family.tiles / wanted, wanted / family.tiles)
        return (imbalance > MAX_IMBALANCE, -accumulators, distance, abs(family.channels - 2))

    return sorted(families, key=promise)[:MAX_FAMILIES]


def schedule_winograd(
    schedule: Schedule, winograd: Winograd, tile: WinogradTile, lanes: int, threads: int, *, sample: bool = False
) -> None:
    """Apply the rule in place. sample: draw the columns of the register tile, up to ``tile.columns``.

    Raises ScheduleError where the kernel does not have the form that ``find_winograd`` promised.
    """
    stages = winograd.stages
    padding = [
        block
        for block in schedule.get_producers(stages["winograd_input_rows"])
        if "if_then_else" in str(schedule.get(block).body)
    ]
    output = _inline_output(schedule, stages, padding)
    batch, block, group, place = _schedule_output(schedule, output, winograd.side, tile)
    _schedule_output_rows(schedule, stages["winograd_output_rows"], place)
    unrolled = divisors(winograd.input_lanes, UNROLLED_CHANNELS)[-1]
    summed = _schedule_product(schedule, stages["winograd_product"], tile, group, unrolled, sample)
    channel = _schedule_input(schedule, stages, padding, block, lanes)
    if tile.tiles < winograd.tiles:
        parallelise_outer(schedule, [batch, block], threads)
    else:
        parallelise_outer(schedule, [channel], threads)
        parallelise_outer(schedule, [group], threads)
    # A decomposed reduction no longer counts as one, and TVM refuses to run its loops in parallel.
    schedule.decompose_reduction(stages["winograd_product"], summed)


def _inline_output(schedule: Schedule, stages: dict[str, SBlockRV], padding: list[SBlockRV]) -> SBlockRV:
    """Inline the epilogue's steps, and the last transform into it; returns the stage that ends the blocks.

    An epilogue of another shape (a flatten) stays behind, and the last transform ends them.
    """
    last = stages["conv2d_winograd"]
    inline_around(schedule, [*stages.values(), *padding])
    consumers = schedule.get_consumers(last)
    shape = spatial_extents(schedule, last)
    if len(consumers) != 1 or spatial_extents(schedule, consumers[0]) != shape:
        return last
    schedule.compute_inline(last)
    return consumers[0]


def _schedule_output(
    schedule: Schedule, output: SBlockRV, side: int, tile: WinogradTile
) -> tuple[LoopRV, LoopRV, LoopRV, LoopRV]:
    """Returns the loops over images, blocks of tiles, groups of channel blocks, and tiles of a block.

    A tile, of ``side`` x ``side`` outputs, is unrolled.
    """
    batch, channel, row, column, vector = schedule.get_loops(output)
    row, row_in = schedule.split(row, [None, side])
    column, column_in = schedule.split(column, [None, side])
    schedule.reorder(batch, row, column, channel, row_in, column_in, vector)
    block, place = schedule.split(schedule.fuse(row, column), [None, tile.tiles])
    group, channel = schedule.split(channel, [None, tile.channels])
    schedule.reorder(batch, block, group, channel, place)
    schedule.vectorize(vector)
    schedule.unroll(row_in)
    schedule.unroll(column_in)
    return batch, block, group, place


def _schedule_output_rows(schedule: Schedule, rows: SBlockRV, place: LoopRV) -> None:
    schedule.compute_at(rows, place, preserve_unit_loops=True)
    *_, row, column, vector = schedule.get_loops(rows)
    schedule.reorder(column, row, vector)
    schedule.vectorize(vector)
    schedule.unroll(row)
    schedule.unroll(column)


def _schedule_product(
    schedule: Schedule, product: SBlockRV, tile: WinogradTile, group: LoopRV, unrolled: int, sample: bool
) -> LoopRV:
    """Returns the loop over the summed channels, ``unrolled`` of them at a time."""
    schedule.compute_at(product, group, preserve_unit_loops=True)
    *_, channel, place, vector, summed = schedule.get_loops(product)
    columns = tile.columns
    if sample:
        _, columns = schedule.sample_perfect_tile(place, n=2, max_innermost_factor=tile.columns)
    place, place_tile = schedule.split(place, [None, columns])
    summed, summed_in = schedule.split(summed, [None, unrolled])
    schedule.reorder(place, summed, summed_in, channel, place_tile, vector)
    schedule.vectorize(vector)
    for loop in (summed_in, channel, place_tile):
        schedule.unroll(loop)
    copy = schedule.cache_write(product, 0, "global")
    schedule.reverse_compute_at(copy, place, preserve_unit_loops=True)
    *inner, vector = schedule.get_loops(copy)[-5:]
    schedule.vectorize(vector)
    for loop in inner:
        schedule.unroll(loop)
    return summed


def _schedule_input(
    schedule: Schedule, stages: dict[str, SBlockRV], padding: list[SBlockRV], block: LoopRV, lanes: int
) -> LoopRV:
    """Returns the outer loop, over channel blocks; a tile is transformed in one piece."""
    transformed, rows = stages["winograd_input"], stages["winograd_input_rows"]
    schedule.compute_at(transformed, block, preserve_unit_loops=True)
    *_, row, column, channel, place, vector = schedule.get_loops(transformed)
    schedule.reorder(channel, place, row, column, vector)
    schedule.compute_at(rows, place, preserve_unit_loops=True)
    *_, row_in, column_in, vector_in = schedule.get_loops(rows)
    schedule.reorder(column_in, row_in, vector_in)
    for loop in (vector, vector_in):
        schedule.vectorize(loop)
    for loop in (row, column, row_in, column_in):
        schedule.unroll(loop)
    for pad in padding:
        schedule.compute_at(pad, channel, preserve_unit_loops=True)
        vectorise_last(schedule, pad, lanes)
    return channel
