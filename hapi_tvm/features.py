"""What the latency surrogate is told of a kernel, read off its function."""

from __future__ import annotations

import math

from tvm.s_tir.analysis import estimate_tir_flops

from hapi_tvm.kernels import Kernel, buffer_shapes, workload
from hapi_tvm.search.surrogate import KernelFeatures
from hapi_tvm.targets import Target

_FAMILIES = {  # the first name found in a fused kernel's name decides
    "conv2d": "conv2d",
    "matmul": "dense",
    "pool": "pool",
    "softmax": "softmax",
    "mean": "reduce",
    "max": "reduce",
    "sum": "reduce",
}
FLOAT32_BYTES = 4


def kernel_features(kernel: Kernel, target: Target) -> KernelFeatures:
    """Sizes are logical: a blocked tensor [1, C/v, H, W, v] counts as C channels."""
    *inputs, output = buffer_shapes(kernel.func)
    operator = next((family for name, family in _FAMILIES.items() if name in kernel.name), "elementwise")
    channels, height, width = _logical(output)
    in_channels, in_height, _ = _logical(inputs[0])
    window, groups = 1, 1
    if operator == "conv2d":
        weight = inputs[1]
        window = weight[2] * weight[3]
        groups = max(1, in_channels // (weight[1] * (weight[4] if len(weight) == 6 else 1)))
    return KernelFeatures(
        operator=operator,
        flops=float(estimate_tir_flops(workload(kernel.func))),
        bytes_read=float(FLOAT32_BYTES * sum(math.prod(shape) for shape in inputs)),
        bytes_written=float(FLOAT32_BYTES * math.prod(output)),
        out_channels=channels,
        out_height=height,
        out_width=width,
        in_channels=in_channels,
        kernel=window,
        stride=max(1, round(in_height / height)),
        groups=groups,
        vector_width=target.vector_width,
        threads=target.threads,
    )


def _logical(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of [N, C, H, W], [N, C/v, H, W, v], [N, C/v, v], [N, C] or less."""
    if len(shape) == 5:
        return shape[1] * shape[4], shape[2], shape[3]
    if len(shape) == 4:
        return shape[1], shape[2], shape[3]
    if len(shape) == 3:
        return shape[1] * shape[2], 1, 1
    return (shape[1] if len(shape) > 1 else 1), 1, 1
