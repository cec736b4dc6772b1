"""Schedule of Winograd kernels, as ``passes.winograd`` writes them.

    padding | block of tiles: input transform, products, output transform with the epilogue

A block's transformed inputs and products stay in a near cache. Each product is a matrix product of tiles by
channels, with the register tile of a 1x1 convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, LoopRV, SBlockRV

from hapi_tvm.targets.rules.blocks import (
    child_blocks,
    inline_around,
    parallelise_outer,
    spatial_extents,
    static_extent,
    vectorise_last,
)
from hapi_tvm.targets.rules.tiles import ENOUGH_ACCUMULATORS, MAX_CHANNELS, divisors, max_accumulators

__all__ = ["Winograd", "WinogradTile", "find_winograd", "schedule_winograd", "winograd_families"]

STAGES = (
    "winograd_input_rows",
    "winograd_input",
    "winograd_product",
    "winograd_output_rows",
    "conv2d_winograd",
)
# Transformed inputs and products of a block of tiles stay in the first cache, where that leaves tiles enough
# to fill the registers. Weights that do not stay in the second cache are read once, for all tiles.
BLOCK_BYTES = 32 << 10
RESIDENT_BYTES = 1 << 20
# Summed channels in one piece: their weights and inputs are addressed by constants.
UNROLLED_CHANNELS = 8
MIN_TILES = 7
MAX_FAMILIES = 8


@dataclass(frozen=True, slots=True)
class WinogradTile:
    """tiles: in a block. channels: channel blocks, and columns: tiles, of a register tile."""

    tiles: int
    channels: int
    columns: int | ExprRV


@dataclass(frozen=True, slots=True)
class Winograd:
    """The stages of a Winograd kernel by name. inputs: channels. channels: blocks of ``lanes`` outputs.

    tile: one has tile x tile outputs. tiles: in an image.
    """

    stages: dict[str, SBlockRV]
    inputs: int
    channels: int
    lanes: int
    tile: int
    tiles: int

    @property
    def products(self) -> int:
        """For each tile and pair of channels."""
        return (self.tile + 2) ** 2

    @property
    def weight_bytes(self) -> int:
        return 4 * self.products * self.inputs * self.channels * self.lanes

    @property
    def tile_bytes(self) -> int:
        """Of one tile: what it transforms, and its products."""
        return 4 * self.products * (self.inputs + self.channels * self.lanes)


def find_winograd(schedule: Schedule) -> Winograd | None:
    """The stages of a Winograd convolution, by their names; None where the kernel has none."""
    blocks = {schedule.get(block).name_hint: block for block in child_blocks(schedule)}
    if not all(name in blocks for name in STAGES):
        return None
    stages = {name: blocks[name] for name in STAGES}
    product = stages["winograd_product"]
    _, side, _, channels, tiles, lanes = spatial_extents(schedule, product)
    inputs = static_extent(schedule.get(product).iter_vars[-1])
    return Winograd(stages, inputs, channels, lanes, side - 2, tiles)


def winograd_families(winograd: Winograd, lanes: int, threads: int) -> list[WinogradTile]:
    """Up to ``MAX_FAMILIES``, the most promising first, each with the most columns that fit the registers."""
    wanted = winograd.tiles
    if winograd.weight_bytes <= RESIDENT_BYTES:
        wanted = min(winograd.tiles, max(MIN_TILES, BLOCK_BYTES // winograd.tile_bytes))
    families = [
        WinogradTile(tiles, channels, divisors(tiles, max_accumulators(lanes) // channels)[-1])
        for tiles in divisors(winograd.tiles, winograd.tiles)
        for channels in divisors(winograd.channels, MAX_CHANNELS)
    ]

    def promise(family: WinogradTile) -> tuple[bool, float, int, int]:
        blocks = winograd.tiles // family.tiles
        accumulators = min(family.channels * family.columns, ENOUGH_ACCUMULATORS)
        distance = max(family.tiles / wanted, wanted / family.tiles)
        return (blocks > 1 and blocks % threads != 0, distance, -accumulators, abs(family.channels - 2))

    return sorted(families, key=promise)[:MAX_FAMILIES]


def schedule_winograd(
    schedule: Schedule, winograd: Winograd, tile: WinogradTile, lanes: int, threads: int
) -> None:
    """Apply the rule in place.

    Raises ScheduleError where the kernel does not have the form that ``find_winograd`` promised.
    """
    stages = winograd.stages
    padding = [
        block
        for block in schedule.get_producers(stages["winograd_input_rows"])
        if "if_then_else" in str(schedule.get(block).body)
    ]
    output = _inline_output(schedule, stages, padding)
    batch, block, group, place = _schedule_output(schedule, output, winograd.tile, tile)
    _schedule_output_rows(schedule, stages["winograd_output_rows"], place)
    summed = _schedule_product(schedule, stages["winograd_product"], winograd, tile, group)
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
    schedule: Schedule, product: SBlockRV, winograd: Winograd, tile: WinogradTile, group: LoopRV
) -> LoopRV:
    """Returns the reduction."""
    schedule.compute_at(product, group, preserve_unit_loops=True)
    *_, channel, place, vector, summed = schedule.get_loops(product)
    place, place_tile = schedule.split(place, [None, tile.columns])
    summed, unrolled = schedule.split(summed, [None, divisors(winograd.inputs, UNROLLED_CHANNELS)[-1]])
    schedule.reorder(place, summed, unrolled, channel, place_tile, vector)
    schedule.vectorize(vector)
    for loop in (unrolled, channel, place_tile):
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
