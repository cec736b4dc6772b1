"""Kernels as the pipeline makes them: topi compute definitions, fused, with the shapes of small CNNs."""

from __future__ import annotations

import tvm
from tvm import te, topi

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


def blocked(inputs, outputs, size, kernel=3, stride=1, lanes=16, epilogue=("bias", "relu")):
    """NCHW<lanes>c convolution with "same" padding and fused elementwise steps."""
    block = min(lanes, inputs)
    data = te.placeholder((1, inputs // block, size, size, block), name="data")
    weight = te.placeholder((outputs // lanes, inputs // block, kernel, kernel, block, lanes), name="weight")
    layout = f"NCHW{lanes}c"
    with TARGET:
        output = topi.nn.conv2d_NCHWc(data, weight, stride, kernel // 2, 1, layout, layout)
    return _epilogue(output, [data, weight], epilogue)


def depthwise(channels, size, stride=1, lanes=16):
    """3x3 depthwise; TVM 0.27 declares topi.nn.depthwise_conv2d_NCHWc but has no definition of it."""
    data = te.placeholder((1, channels // lanes, size, size, lanes), name="data")
    weight = te.placeholder((channels // lanes, 3, 3, lanes), name="weight")
    padded = topi.nn.pad(data, (0, 0, 1, 1, 0), (0, 0, 1, 1, 0), name="data_pad")
    row, column = te.reduce_axis((0, 3), name="kh"), te.reduce_axis((0, 3), name="kw")
    outputs = (size - 1) // stride + 1
    output = te.compute(
        (1, channels // lanes, outputs, outputs, lanes),
        lambda n, c, h, w, v: te.sum(
            padded[n, c, h * stride + row, w * stride + column, v] * weight[c, row, column, v],
            axis=[row, column],
        ),
        name="depthwise",
    )
    return _epilogue(output, [data, weight], ("bias", "relu"))


def plain(inputs, outputs, size, kernel=3, epilogue=("bias", "relu")):
    data = te.placeholder((1, inputs, size, size), name="data")
    weight = te.placeholder((outputs, inputs, kernel, kernel), name="weight")
    output = topi.nn.conv2d_nchw(data, weight, 1, kernel // 2, 1, "float32")
    return _epilogue(output, [data, weight], epilogue)


def dense(inputs, outputs):
    data = te.placeholder((1, inputs), name="data")
    weight = te.placeholder((outputs, inputs), name="weight")
    bias = te.placeholder((outputs,), name="bias")
    return te.create_prim_func([data, weight, bias, topi.add(topi.nn.dense(data, weight), bias)])


def mean(blocks, size, lanes=16):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    return te.create_prim_func([data, topi.divide(topi.sum(data, axis=[2, 3]), float(size * size))])


def maximum(blocks, size, lanes=16):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    return te.create_prim_func([data, topi.max(data, axis=[2, 3])])


def max_pool(blocks, size, lanes=16):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    pooled = topi.nn.pool2d(data, (2, 2), (2, 2), (1, 1), (0, 0, 0, 0), "max", layout=f"NCHW{lanes}c")
    return te.create_prim_func([data, pooled])


def softmax(classes):
    data = te.placeholder((1, classes), name="data")
    return te.create_prim_func([data, topi.nn.softmax(data)])


def add_relu(blocks, size, lanes=16):
    data = te.placeholder((1, blocks, size, size, lanes), name="data")
    other = te.placeholder((1, blocks, size, size, lanes), name="other")
    return te.create_prim_func([data, other, topi.nn.relu(topi.add(data, other))])
