"""What each Relax operator means in torch, for any batch size.

A rule takes the call and its tensors (the operands that are no shapes or numbers) and returns a tensor, or a
tuple where the operator does. The module was traced at batch 1, so a leading 1 among the call's static
shapes stands for the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from tvm import relax

Tensors = torch.Tensor | tuple[torch.Tensor, ...]
Rule = Callable[..., Tensors]


def _ints(values) -> list[int]:
    return [int(value) for value in values]


def _padded(x: torch.Tensor, padding: list[int], value: float) -> torch.Tensor:
    """padding: top, left, bottom, right."""
    top, left, bottom, right = padding
    return F.pad(x, (left, right, top, bottom), value=value)


def _conv2d(call: relax.Call, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    attrs, padding = call.attrs, _ints(call.attrs.padding)
    if padding[:2] != padding[2:]:
        x, padding = _padded(x, padding, 0.0), [0, 0]
    strides, dilation = _ints(attrs.strides), _ints(attrs.dilation)
    return F.conv2d(x, weight, None, strides, padding[:2], dilation, int(attrs.groups))


def _conv2d_transpose(call: relax.Call, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    attrs, (top, left, bottom, right) = call.attrs, _ints(call.attrs.padding)
    extra, strides, dilation = _ints(attrs.output_padding), _ints(attrs.strides), _ints(attrs.dilation)
    full = F.conv_transpose2d(x, weight, None, strides, 0, extra, int(attrs.groups), dilation)
    return full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]


def _ceil_padding(call: relax.Call, x: torch.Tensor) -> list[int]:
    """The call's padding, widened behind until its own output size comes out (``ceil_mode``)."""
    attrs, padding = call.attrs, _ints(call.attrs.padding)
    for axis, (kernel, stride, dilation) in enumerate(
        zip(_ints(attrs.pool_size), _ints(attrs.strides), _ints(attrs.dilation), strict=True)
    ):
        needed = (int(call.ty.shape[2 + axis]) - 1) * stride + dilation * (kernel - 1) + 1
        padding[2 + axis] = max(padding[2 + axis], needed - x.shape[2 + axis] - padding[axis])
    return padding


def _max_pool2d(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    attrs = call.attrs
    x = _padded(x, _ceil_padding(call, x), -torch.inf)
    return F.max_pool2d(x, _ints(attrs.pool_size), _ints(attrs.strides), 0, _ints(attrs.dilation))


def _avg_pool2d(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    """Sums over counts; padding counts where ``count_include_pad`` says so, what ``ceil_mode`` adds never."""
    attrs, given, widened = call.attrs, _ints(call.attrs.padding), _ceil_padding(call, x)
    counted = _padded(torch.ones_like(x[:1, :1]), given, 1.0 if attrs.count_include_pad else 0.0)
    counted = _padded(counted, [wide - own for wide, own in zip(widened, given, strict=True)], 0.0)

    def sums(tensor: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(tensor, _ints(attrs.pool_size), _ints(attrs.strides), divisor_override=1)

    return sums(_padded(x, widened, 0.0)) / sums(counted)


def _adaptive(pool: Callable) -> Rule:
    return lambda call, x: pool(x, _ints(call.ty.shape)[2:])


def _reduction(reduce: Callable) -> Rule:
    def rule(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
        axes = call.attrs.axis
        dims = list(range(x.ndim)) if axes is None else _ints(axes)
        return reduce(x, dims, keepdim=bool(call.attrs.keepdims))

    return rule


def _reshape(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    traced, target = _ints(call.args[0].ty.shape), _ints(call.ty.shape)
    if traced[:1] == target[:1] == [1]:
        target[0] = x.shape[0]
    return x.reshape(target)


def _permute_dims(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    axes = call.attrs.axes
    return x.permute(list(reversed(range(x.ndim))) if axes is None else _ints(axes))


def _split(call: relax.Call, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    axis = int(call.attrs.axis)
    return x.split([int(field.shape[axis]) for field in call.ty.fields], dim=axis)


def _softmax(function: Callable) -> Rule:
    return lambda call, x: function(x, dim=int(call.attrs.axis))


def _clip(call: relax.Call, x: torch.Tensor) -> torch.Tensor:
    low, high = (float(bound.value) for bound in call.args[1:3])
    return x.clamp(low, high)


def _prelu(call: relax.Call, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    shape = [1] * x.ndim
    shape[int(call.attrs.axis)] = -1
    return torch.where(x >= 0, x, x * slope.reshape(shape))


def _plain(function: Callable) -> Rule:
    return lambda call, *tensors: function(*tensors)


RULES: dict[str, Rule] = {
    "relax.nn.conv2d": _conv2d,
    "relax.nn.conv2d_transpose": _conv2d_transpose,
    "relax.nn.max_pool2d": _max_pool2d,
    "relax.nn.avg_pool2d": _avg_pool2d,
    "relax.nn.adaptive_avg_pool2d": _adaptive(F.adaptive_avg_pool2d),
    "relax.matmul": _plain(torch.matmul),
    "relax.mean": _reduction(torch.mean),
    "relax.sum": _reduction(torch.sum),
    "relax.max": _reduction(torch.amax),
    "relax.min": _reduction(torch.amin),
    "relax.reshape": _reshape,
    "relax.squeeze": _reshape,
    "relax.expand_dims": _reshape,
    "relax.permute_dims": _permute_dims,
    "relax.concat": lambda call, *tensors: torch.cat(tensors, dim=int(call.attrs.axis)),
    "relax.split": _split,
    "relax.nn.softmax": _softmax(torch.softmax),
    "relax.nn.log_softmax": _softmax(torch.log_softmax),
    "relax.clip": _clip,
    "relax.nn.relu": _plain(torch.relu),
    "relax.nn.leakyrelu": lambda call, x: F.leaky_relu(x, float(call.attrs.alpha)),
    "relax.nn.prelu": _prelu,
    "relax.nn.silu": _plain(F.silu),
    "relax.nn.gelu": _plain(F.gelu),
    "relax.nn.gelu_tanh": lambda call, x: F.gelu(x, approximate="tanh"),
    "relax.sigmoid": _plain(torch.sigmoid),
    "relax.tanh": _plain(torch.tanh),
    "relax.exp": _plain(torch.exp),
    "relax.log": _plain(torch.log),
    "relax.erf": _plain(torch.erf),
    "relax.sqrt": _plain(torch.sqrt),
    "relax.rsqrt": _plain(torch.rsqrt),
    "relax.square": _plain(torch.square),
    "relax.abs": _plain(torch.abs),
    "relax.negative": _plain(torch.neg),
    "relax.add": _plain(torch.add),
    "relax.subtract": _plain(torch.sub),
    "relax.multiply": _plain(torch.mul),
    "relax.divide": _plain(torch.div),
    "relax.power": _plain(torch.pow),
    "relax.maximum": _plain(torch.maximum),
    "relax.minimum": _plain(torch.minimum),
}
