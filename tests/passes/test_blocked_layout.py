"""BlockedLayout: convolutions write NCHW[v]c, what lies between them follows, and the numbers stay."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op
from tvm.tirx import IndexMap

from hapi_tvm import targets
from hapi_tvm.importing import import_model
from hapi_tvm.passes.blocked_layout import BlockedLayout
from hapi_tvm.passes.dataflow import operator
from hapi_tvm.passes.graph import dataflow_bindings
from hapi_tvm.passes.lower_segments import LowerSegments
from hapi_tvm.passes.pipeline import lower_everything
from hapi_tvm.reference import RESULT, TorchReference
from tests.families import FAMILIES, IMAGE_SHAPE
from tests.passes import networks
from tests.passes.graphs import assert_equal, constant, module

SHAPE = (1, 16, 6, 6)
BIAS = networks.normal(1, 16, 1, 1, seed=9)
WIDTHS = [16, 8, 4]


def weight(outputs: int = 16, inputs: int = 16, kernel: int = 3, seed: int = 7) -> np.ndarray:
    return networks.normal(outputs, inputs, kernel, kernel, seed=seed)


@dataclass(frozen=True)
class Setting:
    """A convolution. padding: top, left, bottom, right."""

    outputs: int = 24
    kernel: int = 3
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: int = 1
    groups: int = 1


SAME = (1, 1, 1, 1)


def convolved(x, emit, setting: Setting, seed: int = 7) -> relax.Var:
    """With bias and a clip, which keeps what is negative."""
    own = weight(setting.outputs, channels_of(x) // setting.groups, setting.kernel, seed)
    value = emit(
        op.nn.conv2d(
            x,
            constant(own),
            strides=setting.strides,
            padding=setting.padding,
            dilation=setting.dilation,
            groups=setting.groups,
        )
    )
    biased = emit(op.add(value, constant(networks.normal(setting.outputs, 1, 1, seed=seed + 1) + 0.5)))
    return emit(op.clip(biased, -1.0, 2.0))


def pointwise(x, emit, outputs: int, seed: int = 7) -> relax.Var:
    return convolved(x, emit, Setting(outputs, kernel=1), seed)


def channels_of(x: relax.Var) -> int:
    return int(x.ty.shape[1])


def block(mod: tvm.IRModule, lanes: int = networks.LANES) -> tvm.IRModule:
    return BlockedLayout(lanes)(mod)


def operators(mod: tvm.IRModule) -> list[str]:
    return [operator(binding.value) for binding in dataflow_bindings(mod["main"])]


def conversions(mod: tvm.IRModule) -> int:
    return operators(mod).count("relax.layout_transform")


def assert_compiles_to_the_same_numbers(mod: tvm.IRModule, lanes: int) -> None:
    shape = [int(extent) for extent in mod["main"].params[0].ty.shape]
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    with networks.HOST:
        machine = networks.machine(LowerSegments()(block(mod, lanes)))
    expected = TorchReference(mod).run(torch.from_numpy(x))[RESULT]
    np.testing.assert_allclose(networks.call(machine["main"], x), expected, rtol=1e-4, atol=1e-5)


def chain(x, emit):
    """Two convolutions with what usually stands between them."""
    first = emit(op.nn.conv2d(x, constant(weight()), padding=1))
    active = emit(op.nn.relu(emit(op.add(first, constant(BIAS)))))
    return emit(op.nn.conv2d(active, constant(weight(seed=8)), strides=2, padding=1))


def packed(array: np.ndarray) -> relax.Expr:
    """A weight OIHW as OIHW8o, computed by NumPy alone."""
    outputs, *rest = array.shape
    return constant(np.moveaxis(array.reshape(outputs // 8, 8, *rest), 1, -1))


def blocked_chain(x, emit):
    """``chain``: the first convolution reads NCHW, and one conversion stands at the end."""
    layouts = {"kernel_layout": "OIHW8o", "out_layout": "NCHW8c"}
    unpack = IndexMap.from_func(lambda n, c, h, w, lane: (n, c * 8 + lane, h, w), index_dtype="int32")
    first = emit(op.nn.conv2d(x, packed(weight()), padding=1, data_layout="NCHW", **layouts))
    active = emit(op.nn.relu(emit(op.add(first, constant(BIAS.reshape(1, 2, 1, 1, 8))))))
    second = emit(
        op.nn.conv2d(active, packed(weight(seed=8)), strides=2, padding=1, data_layout="NCHW8c", **layouts)
    )
    return emit(op.layout_transform(second, unpack))


def test_layout_is_carried_from_convolution_to_convolution():
    assert_equal(block(module(chain, SHAPE)), module(blocked_chain, SHAPE))


def test_what_crosses_a_cut_is_blocked_and_keeps_its_name():
    shapes = {
        binding.var.name: [int(extent) for extent in binding.var.ty.shape]
        for binding in dataflow_bindings(networks.blocked()["main"])
        if binding.var.name.startswith("cut_")
    }
    assert shapes == {"cut_00": [1, 1, 8, 8, 8], "cut_01": [1, 1, 8, 8, 8], "cut_02": [1, 2, 4, 4, 8]}


def test_with_branches_nothing_is_converted():
    """The first convolution reads NCHW, and every classifier reads means and maxima: reshapes."""
    assert conversions(networks.blocked()) == 0


def test_too_few_channels_stay():
    def narrow(x, emit):
        return emit(op.nn.conv2d(x, constant(weight(outputs=2)), padding=1))

    mod = module(narrow, SHAPE)
    assert_equal(block(mod), mod)


def test_an_operator_without_a_rule_gets_nchw_once():
    def body(x, emit):
        first = convolved(x, emit, Setting(16))
        return emit(op.add(emit(op.nn.softmax(first, axis=1)), emit(op.nn.log_softmax(first, axis=1))))

    assert conversions(block(module(body, SHAPE))) == 1


def test_input_is_unchanged():
    networks.assert_leaves_its_input_alone(BlockedLayout(networks.LANES), networks.attached())


@pytest.mark.parametrize("lanes", WIDTHS)
def test_twice_equals_once(lanes):
    networks.assert_twice_equals_once(BlockedLayout(lanes), networks.attached())


@pytest.mark.parametrize("lanes", WIDTHS)
def test_convolutions_keep_their_numbers_on_odd_channels(lanes):
    """34 channels are padded to 48, 40 or 36 lanes; the others have a divisor."""

    def body(x, emit):
        value = x
        for index, outputs in enumerate((10, 24, 100, 34, 7, 58)):
            value = convolved(value, emit, Setting(outputs, padding=SAME), seed=10 * index)
        return value

    assert_compiles_to_the_same_numbers(module(body, (1, 3, 7, 7)), lanes)


SETTINGS = {
    "stride": Setting(strides=(2, 2), padding=SAME),
    "lopsided": Setting(strides=(1, 2), padding=(0, 1, 2, 3)),
    "dilation": Setting(dilation=2, padding=(2, 2, 2, 2)),
    "pointwise": Setting(kernel=1),
    "wide": Setting(kernel=5, padding=(2, 2, 2, 2)),
    "groups": Setting(groups=2, padding=SAME),
    "narrow groups": Setting(groups=12, padding=SAME),
    "multiplier": Setting(48, groups=24, padding=SAME),
    "depthwise": Setting(groups=24, strides=(2, 2), padding=SAME),
    "depthwise, dilated": Setting(groups=24, dilation=2, padding=(2, 2, 2, 2)),
}


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("name", SETTINGS)
def test_convolutions_keep_their_numbers(name, lanes):
    """Between two others, and as the first one, which reads NCHW."""

    def between(x, emit):
        return pointwise(convolved(pointwise(x, emit, 24), emit, SETTINGS[name]), emit, 10)

    def first(x, emit):
        return convolved(x, emit, SETTINGS[name])

    for body in (between, first):
        assert_compiles_to_the_same_numbers(module(body, (1, 24, 8, 9)), lanes)


def test_padded_channels_keep_their_numbers_in_groups():
    def body(x, emit):
        filtered = convolved(pointwise(x, emit, 34), emit, Setting(34, groups=34, padding=SAME))
        return convolved(filtered, emit, Setting(34, groups=2, padding=SAME))

    assert_compiles_to_the_same_numbers(module(body, SHAPE), 16)


def gate(x, emit):
    """Squeeze and excite, the piecewise linear gate of MobileNetV3."""
    mean = emit(op.mean(x, axis=[2, 3], keepdims=True))
    opened = pointwise(emit(op.nn.relu(pointwise(mean, emit, 6))), emit, channels_of(x))
    bounded = emit(op.clip(emit(op.add(opened, constant(3.0))), 0.0, 6.0))
    return emit(op.multiply(x, emit(op.divide(bounded, constant(6.0)))))


def pools(x, emit):
    value = emit(op.nn.max_pool2d(x, pool_size=(3, 3), strides=(1, 1), padding=(1, 1)))
    value = emit(op.nn.avg_pool2d(value, pool_size=(3, 3), padding=(1, 1), count_include_pad=True))
    value = emit(op.nn.avg_pool2d(value, pool_size=(2, 2), strides=(1, 1), padding=(1, 1)))
    value = emit(op.nn.max_pool2d(value, pool_size=(2, 2), strides=(2, 2), ceil_mode=True))
    return emit(op.nn.pad(value, [0, 0, 0, 0, 1, 0, 0, 2]))


def adaptive(x, emit):
    coarse = emit(op.nn.adaptive_avg_pool2d(x, (3, 3)))
    whole = emit(op.nn.adaptive_avg_pool2d(x, (1, 1)))
    return emit(op.add(coarse, whole))


def constants(x, emit):
    """Every shape that broadcasts, batch norms left over among them."""
    _, channels, height, width = (int(extent) for extent in x.ty.shape)
    value = emit(op.multiply(x, constant(networks.normal(1, channels, 1, 1, seed=1))))
    for shape in ((), (1,), (width,), (channels, 1, 1), (1, 1, height, 1), (1, channels, height, width)):
        value = emit(op.add(value, constant(networks.normal(1, *shape, seed=2)[0])))
    return emit(op.subtract(constant(1.0), value))


def spatial_gate(x, emit):
    """The mean over channels [1, 1, H, W], which broadcasts over all of them."""
    return emit(op.multiply(x, emit(op.sigmoid(emit(op.mean(x, axis=[1], keepdims=True))))))


def rows(x, emit):
    return emit(op.add(emit(op.max(x, axis=[-1], keepdims=True)), x))


def activations(x, emit):
    value = emit(op.add(emit(op.nn.silu(x)), emit(op.nn.leakyrelu(x, 0.1))))
    value = emit(op.nn.prelu(value, constant(networks.normal(channels_of(x), 1, seed=3)[:, 0])))
    return emit(op.sqrt(emit(op.exp(emit(op.tanh(value))))))


def quotient(x, emit):
    """On padding this is 0 / 0, which the convolution behind it would spread over all channels."""
    positive = constant(networks.normal(1, channels_of(x), 1, 1, seed=4) ** 2 + 1)
    return emit(op.divide(x, emit(op.add(emit(op.abs(x)), positive))))


def shared_concatenation(x, emit):
    return emit(op.concat([pointwise(x, emit, outputs, seed=outputs) for outputs in (8, 16, 24)], axis=1))


def odd_concatenation(x, emit):
    parts = [pointwise(x, emit, outputs, seed=outputs) for outputs in (5, 34, 2)]
    return emit(op.concat([x, *parts], axis=1))


def rows_concatenated(x, emit):
    return emit(op.concat([x, x], axis=2))


def shuffle(x, emit):
    _, channels, height, width = (int(extent) for extent in x.ty.shape)
    split = emit(op.reshape(x, (1, 2, channels // 2, height, width)))
    return emit(op.reshape(emit(op.permute_dims(split, [0, 2, 1, 3, 4])), (1, channels, height, width)))


@pytest.mark.parametrize("channels", [24, 34])
@pytest.mark.parametrize(
    "body",
    [
        gate, pools, adaptive, constants, spatial_gate, rows, activations, quotient,
        shared_concatenation, odd_concatenation, rows_concatenated, shuffle,
    ],
)  # fmt: skip
def test_operators_keep_their_numbers(body, channels):
    """Between two convolutions, on 12 lanes and on 34 channels padded to 48 lanes."""

    def between(x, emit):
        return pointwise(body(convolved(x, emit, Setting(channels)), emit), emit, 10)

    assert_compiles_to_the_same_numbers(module(between, (1, 5, 9, 8)), 16)


@pytest.mark.parametrize("body", [gate, pools, adaptive, constants, rows, shared_concatenation])
def test_operators_convert_nothing(body):
    """But for the last convolution's output."""

    def between(x, emit):
        return pointwise(body(convolved(x, emit, Setting(24)), emit), emit, 16)

    assert conversions(block(module(between, (1, 5, 9, 8)))) == 1


@pytest.mark.parametrize("channels", [24, 34])
def test_classifiers_keep_their_numbers(channels):
    """Means with and without their axes, each flattened: on padded channels a slice remains."""

    def body(x, emit):
        features = convolved(x, emit, Setting(channels))
        kept = emit(op.reshape(emit(op.mean(features, axis=[2, 3], keepdims=True)), (1, channels)))
        gone = emit(op.max(features, axis=[-2, -1]))
        squeezed = emit(op.squeeze(emit(op.nn.adaptive_avg_pool2d(features, (1, 1))), axis=[2, 3]))
        lines = emit(op.reshape(emit(op.sum(features, axis=[3])), (1, -1)))
        return emit(op.concat([kept, gone, squeezed, lines], axis=1))

    assert_compiles_to_the_same_numbers(module(body, (1, 3, 7, 7)), 16)


@pytest.mark.parametrize("lanes", WIDTHS)
@pytest.mark.parametrize("name", FAMILIES)
def test_families_convert_only_where_they_flatten_and_every_convolution_has_a_schedule(name, lanes):
    target = replace(targets.llvm(), vector_width=lanes)
    backbone = import_model(FAMILIES[name](), torch.zeros(IMAGE_SHAPE))
    lowered = lower_everything(backbone.module, [], {}, target.tvm_target, lanes)
    called = networks.kernels(lowered["segment_00"])
    flattened_maps = {"vgg": 1}  # 4x4; the others end in a global mean
    assert sum("transform" in kernel for kernel in called) == flattened_maps.get(name, 0)
    convolutions = {kernel for kernel in called if "conv2d" in kernel}
    assert convolutions and all("conv2d_blocked" in kernel for kernel in convolutions)
    assert all(target.default_schedule(lowered[kernel]) is not None for kernel in convolutions)
    calls = [operator(binding.value) for binding in dataflow_bindings(backbone.module["main"])]
    assert sum("conv2d" in kernel for kernel in called) == calls.count("relax.nn.conv2d")
