"""Operations that one call of a Relax operator takes, counted from its shapes."""

from __future__ import annotations

import math

from tvm import relax

from hapi_tvm.passes.dataflow import operator

MOVES = frozenset(
    f"relax.{name}"
    for name in (
        "reshape permute_dims concat split strided_slice squeeze expand_dims flatten broadcast_to "
        "layout_transform nn.pad take gather_elements zeros_like image.resize2d"
    ).split()
)
REDUCTIONS = frozenset(f"relax.{name}" for name in ("mean", "sum", "max", "min", "variance", "std"))
CONVOLUTIONS = frozenset(f"relax.nn.{name}" for name in ("conv1d", "conv2d", "conv3d"))


def op_flops(value: object) -> int:
    """Floating-point operations of one bound value at the shapes it has; a multiply-add counts two.

    Convolutions and matrix products: two for each multiply-add. Pools: the kernel's area for each output.
    Reductions and adaptive pools: one for each input element. What only moves data: none. Everything else
    counts as elementwise, one for each output element. The conventions are ours.
    """
    name = operator(value)
    if not isinstance(value, relax.Call) or name in MOVES:
        return 0
    if name in CONVOLUTIONS:
        return 2 * _size(value) * math.prod(_shape(value.args[1])[1:])
    if name == "relax.nn.conv2d_transpose":
        return 2 * _size(value.args[0]) * math.prod(_shape(value.args[1])[1:])
    if name == "relax.matmul":
        return 2 * _size(value) * _shape(value.args[0])[-1]
    if name in ("relax.nn.max_pool2d", "relax.nn.avg_pool2d"):
        return _size(value) * math.prod(int(extent) for extent in value.attrs.pool_size)
    if name in REDUCTIONS or name.startswith("relax.nn.adaptive_"):
        return _size(value.args[0])
    return _size(value)


def _shape(expr: relax.Expr) -> list[int]:
    return [int(extent) for extent in expr.ty.shape]


def _size(expr: relax.Expr) -> int:
    if isinstance(expr.ty, relax.TupleType):
        return sum(math.prod(int(extent) for extent in field.shape) for field in expr.ty.fields)
    return math.prod(_shape(expr))
