"""Register tiles: what one iteration of a convolution computes, and which tiles are worth trying.

The figures were measured on one AVX-512 core, TVM 0.27.0.post1, where 14 to 16 accumulators reach 200 to
215 GFLOP/s and MKL's sgemm 165 to 175. The rules are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm.s_tir.schedule import ExprRV

from hapi_tvm.targets.rules.conv2d import Convolution
from hapi_tvm.targets.rules.vectors import VectorUnit

__all__ = ["Tile", "accumulator_limit", "default_tile", "divisors", "max_accumulators", "tile_families"]

# Fewer leave the multiply-add units waiting (two of 4 cycles each); with 28, LLVM spills, at half the speed.
ENOUGH_ACCUMULATORS = 14
# Each channel block reads a stream of weights of its own; 16 streams ran at a tenth of the speed of 2.
MAX_CHANNELS = 4
# Of a 1x1 convolution, the best first: 3 by 7 columns took 4 to 14 % less time than 2 by 7, and 5 by 2 by 2
# up to a quarter less than one block, all that 5 blocks otherwise allow. 3 by 8 spills.
POINTWISE_CHANNELS = (3, 2, 5, 1, 4)
MAX_POINTWISE_ACCUMULATORS = 21
# What one channel block of weights may take to stay in the first cache beside the data.
RESIDENT_BYTES = 32 << 10
# Rows that share one padded copy of their inputs: few enough that it stays in a near cache, and enough
# that the rows which two copies share cost little. Depthwise kernels pad one channel block at a time.
ROWS_A_BLOCK = 8
DEPTHWISE_ROWS_A_BLOCK = 4
MAX_FAMILIES = 6


@dataclass(frozen=True, slots=True)
class Tile:
    """channels: channel blocks (plain: channels); rows, columns: outputs; one iteration computes them all.

    row_tiles: tiles of rows that are computed on one padded copy of their inputs, while it is hot; None
    pads the whole image first.
    """

    channels: int
    rows: int
    columns: int | ExprRV
    row_tiles: int | None


def divisors(extent: int, limit: int) -> list[int]:
    return [factor for factor in range(1, min(extent, limit) + 1) if extent % factor == 0]


def max_accumulators(registers: int) -> int:
    """Of so many vector registers, those that may hold sums: 12 of 16, 16 of 32, and some whatever it spills."""
    return min(16, max(MAX_CHANNELS, registers * 3 // 4))


def tile_families(convolution: Convolution, unit: VectorUnit, threads: int) -> list[Tile]:
    """Up to ``MAX_FAMILIES`` tiles, the most promising first, each with the most columns it may have.

    Promising: enough accumulators; then two channel blocks, which read each input once for two
    multiply-adds, or one, where weights come from the second cache anyway; then two rows. A 1x1
    convolution has an order of its own, and rather one row: its data are then read from front to back.
    """
    limit = accumulator_limit(convolution, unit)
    families = []
    for channels in _channel_counts(convolution):
        for rows in divisors(convolution.rows, limit // channels):
            room = unit.lanes if convolution.plain else limit // (channels * rows)
            columns = divisors(convolution.columns, room)[-1]
            families.append(Tile(channels, rows, columns, _row_tiles(convolution, rows, threads)))
    families.sort(key=lambda tile: _promise(convolution, tile, min(limit, ENOUGH_ACCUMULATORS)))
    return families[:MAX_FAMILIES]


def accumulator_limit(convolution: Convolution, unit: VectorUnit) -> int:
    """Most accumulators of a tile: a 1x1 convolution has registers to spare, for it reads one input at a time.

    Not on NEON, where the inputs take registers too: LLVM spilled with 21, and with 16 it did not.
    """
    blocked = convolution.pointwise and not convolution.plain
    return MAX_POINTWISE_ACCUMULATORS if blocked and unit.broadcasts else max_accumulators(unit.registers)


def _channel_counts(convolution: Convolution) -> list[int]:
    if convolution.inputs is None:
        return [1]
    if convolution.pointwise:
        return [count for count in POINTWISE_CHANNELS if convolution.channels % count == 0]
    return divisors(convolution.channels, MAX_CHANNELS)


def default_tile(convolution: Convolution, unit: VectorUnit, threads: int) -> Tile:
    """The tile to use without any trial."""
    return tile_families(convolution, unit, threads)[0]


def _promise(convolution: Convolution, tile: Tile, enough: int) -> tuple[int, int, int]:
    columns = 1 if convolution.plain else tile.columns
    accumulators = tile.channels * tile.rows * columns
    if convolution.inputs is None:
        # Neighbours in a row share what they read, and a short row is all the work there is.
        return (-min(accumulators, enough // 2), tile.rows, -accumulators)
    if convolution.pointwise:
        return (-min(accumulators, enough), POINTWISE_CHANNELS.index(tile.channels), tile.rows)
    return (-min(accumulators, enough), abs(tile.channels - _channels(convolution)), abs(tile.rows - 2))


def _channels(convolution: Convolution) -> int:
    block_bytes = convolution.weight_bytes // convolution.channels
    return 1 if convolution.window != (1, 1) and block_bytes > RESIDENT_BYTES else 2


def _row_tiles(convolution: Convolution, rows: int, threads: int) -> int | None:
    """Near the wanted rows a block, in a number of blocks that the threads share evenly where one is."""
    depthwise = convolution.inputs is None
    if convolution.plain or (not depthwise and convolution.rows < 2 * ROWS_A_BLOCK):
        return None
    wanted = DEPTHWISE_ROWS_A_BLOCK if depthwise else ROWS_A_BLOCK
    tiles = convolution.rows // rows
    candidates = divisors(tiles, tiles)
    if not depthwise:
        candidates = [count for count in candidates if tiles // count % threads == 0] or candidates
    return min(candidates, key=lambda count: (abs(count * rows - wanted), -count))
