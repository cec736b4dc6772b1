"""BlockedLayout: convolutions run on NCHW[v]c, what lies between them follows, and the numbers stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op
from tvm.tirx import IndexMap

from hapi_tvm.passes.blocked_layout import BlockedLayout
from hapi_tvm.passes.dataflow import operator
from hapi_tvm.passes.fold_weights import FoldWeights
from hapi_tvm.passes.graph import dataflow_bindings
from hapi_tvm.passes.lower_segments import LowerSegments
from hapi_tvm.reference import RESULT, TorchReference
from tests.passes import networks
from tests.passes.graphs import assert_equal, constant, module

SHAPE = (1, 16, 6, 6)
BIAS = networks.normal(1, 16, 1, 1, seed=9)


def weight(groups: int = 1, inputs: int = 16, seed: int = 7) -> np.ndarray:
    return networks.normal(16, inputs // groups, 3, 3, seed=seed)


def chain(x, emit):
    """Two convolutions with what usually stands between them."""
    first = emit(op.nn.conv2d(x, constant(weight()), padding=1))
    active = emit(op.nn.relu(emit(op.add(first, constant(BIAS)))))
    return emit(op.nn.conv2d(active, constant(weight(seed=8)), strides=2, padding=1))


def packed(array: np.ndarray) -> relax.Expr:
    """A weight OIHW as OIHW8i8o, computed by NumPy alone."""
    outputs, inputs, height, width = array.shape
    split = array.reshape(outputs // 8, 8, inputs // 8, 8, height, width)
    return constant(np.ascontiguousarray(split.transpose(0, 2, 4, 5, 3, 1)))


def blocked_chain(x, emit):
    """``chain`` with one conversion at either end and none in between."""
    layouts = {"data_layout": "NCHW8c", "kernel_layout": "OIHW8i8o", "out_layout": "NCHW8c"}
    pack = IndexMap.from_func(lambda n, c, h, w: (n, c // 8, h, w, c % 8), index_dtype="int32")
    unpack = IndexMap.from_func(lambda n, c, h, w, lane: (n, c * 8 + lane, h, w), index_dtype="int32")
    into = emit(op.layout_transform(x, pack))
    first = emit(op.nn.conv2d(into, packed(weight()), padding=1, **layouts))
    active = emit(op.nn.relu(emit(op.add(first, constant(BIAS.reshape(1, 2, 1, 1, 8))))))
    second = emit(op.nn.conv2d(active, packed(weight(seed=8)), strides=2, padding=1, **layouts))
    return emit(op.layout_transform(second, unpack))


def block(mod: tvm.IRModule) -> tvm.IRModule:
    return FoldWeights()(BlockedLayout(networks.LANES)(mod))


def assert_compiles_to_the_same_numbers(mod: tvm.IRModule) -> None:
    shape = [int(extent) for extent in mod["main"].params[0].ty.shape]
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with networks.HOST:
        machine = networks.machine(LowerSegments()(block(mod)))
    expected = TorchReference(mod).run(torch.from_numpy(x))[RESULT]
    np.testing.assert_allclose(networks.call(machine["main"], x), expected, rtol=1e-4, atol=1e-5)


def test_layout_is_carried_from_convolution_to_convolution():
    assert_equal(block(module(chain, SHAPE)), module(blocked_chain, SHAPE))


def test_what_crosses_a_cut_is_blocked_from_the_first_blocked_convolution_on():
    shapes = {
        binding.var.name: [int(extent) for extent in binding.var.ty.shape]
        for binding in dataflow_bindings(networks.blocked()["main"])
        if binding.var.name.startswith("cut_")
    }
    # The stem reads 3 channels, which 8 lanes do not divide.
    assert shapes == {"cut_00": [1, 8, 8, 8], "cut_01": [1, 1, 8, 8, 8], "cut_02": [1, 2, 4, 4, 8]}


def test_constants_need_no_conversion_at_run_time():
    computed = {
        binding.value.args[0]
        for binding in dataflow_bindings(networks.blocked()["main"])
        if operator(binding.value) == "relax.layout_transform"
    }
    assert computed and all(isinstance(data, relax.Var) for data in computed)


def test_channels_that_the_lanes_do_not_divide_stay():
    def stem(x, emit):
        return emit(op.nn.conv2d(x, constant(weight(inputs=3)), padding=1))

    mod = module(stem, (1, 3, 6, 6))
    assert_equal(block(mod), mod)


def test_input_is_unchanged():
    networks.assert_leaves_its_input_alone(BlockedLayout(networks.LANES), networks.attached())


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_twice_equals_once(lanes):
    networks.assert_twice_equals_once(BlockedLayout(lanes), networks.attached())


@pytest.mark.parametrize("groups", [1, 2, 16])
def test_numbers_stay(groups):
    """Grouped convolutions too: 2 groups of 8 channels are blocked, depthwise ones are left alone."""

    def body(x, emit):
        first = emit(op.nn.conv2d(x, constant(weight(groups)), padding=1, groups=groups))
        active = emit(op.nn.relu(emit(op.add(first, constant(BIAS)))))
        pooled = emit(op.nn.max_pool2d(active, pool_size=(2, 2), strides=(2, 2)))
        return emit(op.nn.conv2d(pooled, constant(weight(seed=8)), dilation=2, padding=2))

    assert_compiles_to_the_same_numbers(module(body, SHAPE))
