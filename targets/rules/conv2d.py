"""Finding the convolution in a kernel: its blocks, its axes, what it pads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV
from tvm.tirx import FloorMod, IterVar

from hapi_tvm.targets.rules.blocks import child_blocks, inline_around, is_reduction, static_extent

__all__ = ["Convolution", "find_convolution", "prepare"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """Where a kernel convolves. Loops of ``block``: batch, channel, row, column, channel block, reductions.

    channels: blocks of output channels (plain: channels). rows, columns: outputs. window: kernel rows and
    columns. inputs: channels that are summed, None for a depthwise convolution or a pooling.
    plain: NCHW; else the last spatial axis, of ``vector`` channels, is the channel block.
    input_block: channels in a block of the data, where several blocks are summed; else 1.
    """

    block: SBlockRV
    channels: int
    rows: int
    columns: int
    window: tuple[int, int]
    inputs: int | None
    vector: int
    plain: bool
    input_block: int

    @property
    def pointwise(self) -> bool:
        """Whether each output sums the channels of one place (1x1)."""
        return self.inputs is not None and self.window == (1, 1)

    @property
    def weight_bytes(self) -> int:
        """Of all weights, float32; 0 where no channels are summed."""
        return 4 * self.channels * self.vector * math.prod(self.window) * (self.inputs or 0)


def find_convolution(schedule: Schedule) -> Convolution | None:
    """The one convolution of a kernel, found by its iteration pattern.

    Four spatial axes and three reductions are NCHW; a fifth spatial axis is the channel block; two
    reductions (kernel row and column) are a depthwise convolution or a pooling, which share the order.
    None for anything else, such as a kernel with several reductions, or one output for each channel.
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
    *inputs, kernel_rows, kernel_columns = (static_extent(var) for var in variables[spatial:])
    if (block and block[0] == 1) or (rows * columns == 1 and not (block and inputs)):
        return None
    return Convolution(
        reductions[0],
        channels,
        rows,
        columns,
        (kernel_rows, kernel_columns),
        inputs[0] if inputs else None,
        block[0] if block else 1,
        plain=not block,
        input_block=_input_block(schedule, reductions[0]),
    )


def _input_block(schedule: Schedule, block: SBlockRV) -> int:
    """Blocked data is read at channel ``c // a`` and lane ``c % a``: this a; 1 without such a read."""
    lanes = (region.region[-1].min for region in schedule.get(block).reads)
    return next((int(lane.b) for lane in lanes if isinstance(lane, FloorMod)), 1)


def prepare(schedule: Schedule, block: SBlockRV) -> tuple[list[SBlockRV], SBlockRV | None]:
    """Inline what can be around a reduction; returns its padding stages, and the one stage behind it.

    Behind a reduction that writes the output a copy is put: its sums are then local. None where several
    stages read the reduction: they stay behind it.
    """
    padding = [producer for producer in schedule.get_producers(block) if _pads(schedule, producer)]
    inline_around(schedule, [block, *padding])
    consumers = schedule.get_consumers(block)
    if not consumers:
        return padding, schedule.cache_write(block, 0, "global")
    return padding, consumers[0] if len(consumers) == 1 else None


def _pads(schedule: Schedule, producer: SBlockRV) -> bool:
    """Inlined, the test of a padding would run once for each multiply-add."""
    return not is_reduction(schedule, producer) and "if_then_else" in str(schedule.get(producer).body)
