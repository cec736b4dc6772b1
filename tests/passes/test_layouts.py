"""Packing in NumPy, read back by index, and grouped weights against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hapi_tvm.passes.layouts import Layout, merge_groups, pack, pack_weight

LAYOUTS = [Layout(24, 8), Layout(24, 12), Layout(34, 16)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_channels_lie_in_blocks_and_padding_is_zero(layout):
    array = np.random.default_rng(0).standard_normal((1, layout.channels, 3, 5))
    packed = pack(array, layout)
    assert packed.shape == (1, layout.blocks, 3, 5, layout.block)
    for channel in range(layout.channels):
        found = packed[:, channel // layout.block, ..., channel % layout.block]
        np.testing.assert_array_equal(found, array[:, channel])
    assert np.abs(packed).sum() == pytest.approx(np.abs(array).sum())


def test_one_channel_stays_one_and_broadcasts():
    array = np.ones((1, 1, 3, 5))
    assert pack(array, Layout(24, 8)).shape == (1, 1, 3, 5, 1)
    assert pack(array, Layout(1, 4)).shape == (1, 1, 3, 5, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_lie_in_the_order_of_the_loops(layout):
    weight = np.random.default_rng(0).standard_normal((layout.channels, 5, 3, 2))
    packed = pack_weight(weight, layout, inputs=6)
    assert packed.shape == (layout.blocks, 6, 3, 2, layout.block) and packed.flags.c_contiguous
    for output in range(layout.channels):
        found = packed[output // layout.block, :5, ..., output % layout.block]
        np.testing.assert_array_equal(found, weight[output])
    assert np.abs(packed).sum() == pytest.approx(np.abs(weight).sum())


@pytest.mark.parametrize(("groups", "merged"), [(6, 1), (6, 2), (6, 3), (6, 6)])
def test_merged_groups_compute_the_same(groups, merged):
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 12, 5, 5, generator=random)
    weight = torch.randn(18, 12 // groups, 3, 3, generator=random)
    fewer = torch.from_numpy(merge_groups(weight.numpy(), groups, merged))
    found = torch.conv2d(x, fewer, groups=groups // merged)
    torch.testing.assert_close(found, torch.conv2d(x, weight, groups=groups), rtol=1e-4, atol=1e-4)
