"""choose_blocks: the widest block that all who meet can share."""

from __future__ import annotations

import pytest
from tvm.relax import op

from hapi_tvm.passes.block_sizes import choose_blocks
from hapi_tvm.passes.layouts import Layout
from tests.passes.graphs import constant, module, random


def chosen(body, lanes: int, channels: int = 3) -> list[Layout | None]:
    """The layout of each convolution in order, None for NCHW."""
    main = module(body, (1, channels, 6, 6))["main"]
    layouts = choose_blocks(main, lanes)
    convolutions = [
        binding.var
        for binding in main.body.blocks[0].bindings
        if "conv2d" in str(getattr(binding.value, "op", ""))
    ]
    return [layouts.get(var) for var in convolutions]


def convolved(x, emit, outputs: int, groups: int = 1):
    return emit(op.nn.conv2d(x, constant(random(outputs, int(x.ty.shape[1]) // groups, 1, 1)), groups=groups))


@pytest.mark.parametrize(
    ("channels", "lanes", "block"),
    [
        *((64, 16, 16), (64, 8, 8), (64, 4, 4)),
        *((24, 16, 12), (40, 16, 10), (100, 16, 10), (10, 16, 10), (10, 8, 5), (320, 16, 16), (7, 8, 7)),
        # 3 padded blocks in place of 17 of 2 lanes, and the like.
        *((34, 16, 16), (58, 8, 8), (10, 4, 4), (7, 4, 4)),
    ],
)
def test_block_of_one_convolution(channels, lanes, block):
    (layout,) = chosen(lambda x, emit: convolved(x, emit, channels), lanes)
    assert layout == Layout(channels, block)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_too_few_channels_stay_nchw(channels):
    assert chosen(lambda x, emit: convolved(x, emit, channels), 16) == [None]


def test_parts_of_a_concatenation_share_a_block():
    def body(x, emit):
        return emit(op.concat([convolved(x, emit, outputs) for outputs in (16, 24, 8)], axis=1))

    assert [layout.block for layout in chosen(body, 16)] == [8, 8, 8]


def test_a_sum_with_a_part_shares_its_block_too():
    def body(x, emit):
        first, second = convolved(x, emit, 16), convolved(x, emit, 24)
        emit(op.concat([first, second], axis=1))
        return emit(op.add(first, emit(op.nn.relu(convolved(x, emit, 16)))))

    assert [layout.block for layout in chosen(body, 16)] == [8, 8, 8]


def test_parts_that_would_lose_too_much_keep_their_own_block():
    def body(x, emit):
        return emit(op.concat([convolved(x, emit, outputs) for outputs in (64, 20, 34)], axis=1))

    assert chosen(body, 16) == [Layout(64, 16), Layout(20, 10), Layout(34, 16)]


def test_a_depthwise_convolution_shares_the_block_of_what_it_reads():
    def body(x, emit):
        first, second = convolved(x, emit, 16), convolved(x, emit, 24)
        emit(op.concat([first, second], axis=1))
        return convolved(convolved(first, emit, 16, groups=16), emit, 32)

    assert [layout.block for layout in chosen(body, 16)] == [8, 8, 8, 16]
