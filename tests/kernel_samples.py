"""Kernels as the pipeline makes them: compute definitions, fused, with the shapes of small CNNs."""

from __future__ import annotations

import tvm
from tvm import te, topi

from hapi_tvm.passes.blocked_ops import convolution
from hapi_tvm.passes.winograd import winograd

TARGET = tvm.target.Target({"kind": "llvm", "num-cores": 1})


def _epilogue(output, arguments, epilogue):
    for step in epilogue:
        if step == "bias":
            shape = [1] * len(output.shape)
            shape[1] = output.shape[1]
            if len(shape) == 5:
                shape[4] = output.shape[4]
            arguments.append(te.placeholder(shape, name="bias"))
            output = topi.add(output, arguments[-1])
        elif step == "residual":
            arguments.append(te.placeholder(output.shape, name="residual"))
            output = topi.add(output, arguments[-1])
        elif step == "relu":
            output = topi.nn.relu(output)
        elif step == "silu":
            output = topi.multiply(output, topi.sigmoid(output))
        elif step == "block":
            output = topi.layout_transform(output, "NCHW", "NCHW16c")
        elif step == "flat":
            output = topi.reshape(output, (1, int(topi.utils.prod(output.shape))))
    return te.create_prim_func([*arguments, output])


def _data(inputs, size, lanes):
    """NCHW for fewer than 4 channels, else in the largest blocks up to ``lanes``."""
    if inputs < 4:
        return te.placeholder((1, inputs, size, size), name="data")
    block = max(divisor for divisor in range(1, lanes + 1) if inputs % divisor == 0)
    return te.placeholder((1, inputs // block, size, size, block), name="data")


def blocked(
    inputs,
    outputs,
    size,
    kernel=3,
    stride=1,
    lanes=16,
    epilogue=("bias", "relu"),
    *,
    groups=1,
    dilation=1,
):
    """A convolution that writes NCHW<lanes>c, padded to "same"; lanes divides outputs / groups."""
    data = _data(inputs, size, lanes)
    weight = te.placeholder((outputs // lanes, inputs // groups, kernel, kernel, lanes), name="weight")
    sides = (dilation * (kernel - 1) // 2,) * 4
    output = convolution(data, weight, (stride, stride), sides, (dilation, dilation), groups)
    return _epilogue(output, [data, weight], epilogue)


def winograd_blocked(inputs, outputs, size, tile, lanes=16, epilogue=("bias", "relu"), padding=1):
    """The same with a 3x3 kernel and stride 1, in tiles of ``tile`` x ``tile`` outputs."""
    data = _data(inputs, size, lanes)
    weight = te.placeholder(((tile + 2) ** 2, outputs // lanes, inputs, lanes), name="weight")
    return _epilogue(winograd(data, weight, (padding,) * 4, tile), [data, weight], epilogue)


def depthwise(channels, size, stride=1, lanes=16, *, kernel=3, dilation=1, padding=None):
    """padding: top, left, bottom, right; None is "same"."""
    data = te.placeholder((1, channels // lanes, size, size, lanes), name="data")
    weight = te.placeholder((channels // lanes, 1, kernel, kernel, lanes), name="weight")
    sides = (dilation * (kernel - 1) // 2,) * 4 if padding is None else padding
    output = convolution(data, weight, (stride, stride), sides, (dilation, dilation), channels)
    return _epilogue(output, [data, weight], ("bias", "relu"))


def plain(inputs, outputs, size, kernel=3, epilogue=("bias", "relu"), groups=1):
    data = te.placeholder((1, inputs, size, size), name="data")
    weight = te.placeholder((outputs, inputs // groups, kernel, kernel), name="weight")
    if groups > 1:
        output = topi.nn.group_conv2d_nchw(data, weight, 1, kernel // 2, 1, groups, "float32")
    else:
        output = topi.nn.conv2d_nchw(data, weight, 1, kernel // 2, 1, "float32")
    return _epilogue(output, [data, weight], epilogue)


def dense(inputs, outputs):
    """Weights [N, K], with the sum along them."""
    data = te.placeholder((1, inputs), name="data")
    weight = te.placeholder((outputs, inputs), name="weight")
    bias = te.placeholder((outputs,), name="bias")
    return te.create_prim_func([data, weight, bias, topi.add(topi.nn.dense(data, weight), bias)])


def matmul(inputs, outputs, rows=1):
    """Weights [K, N], as imported models have them."""
    data = te.placeholder((rows, inputs), name="data")
    weight = te.placeholder((inputs, outputs), name="weight")
    bias = te.placeholder((outputs,), name="bias")
    return te.create_prim_func([data, weight, bias, topi.add(topi.matmul(data, weight), bias)])


def mean(blocks, size, lanes=16):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    return te.create_prim_func([data, topi.divide(topi.sum(data, axis=[2, 3]), float(size * size))])


def maximum(blocks, size, lanes=16):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    return te.create_prim_func([data, topi.max(data, axis=[2, 3])])


def max_pool(blocks, size, lanes=16, kernel=2, stride=2, padding=0):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    window, steps = (kernel, kernel), (stride, stride)
    pooled = topi.nn.pool2d(data, window, steps, (1, 1), (padding,) * 4, "max", layout=f"NCHW{lanes}c")
    return te.create_prim_func([data, pooled])


def softmax(classes):
    data = te.placeholder((1, classes), name="data")
    return te.create_prim_func([data, topi.nn.softmax(data)])


def add_relu(blocks, size, lanes=16):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    other = te.placeholder((1, blocks, size, size, lanes), name="other")
    return te.create_prim_func([data, other, topi.nn.relu(topi.add(data, other))])
