"""Which block each convolution writes, so that what meets agrees. Analysis only; nothing is changed."""

from __future__ import annotations

import math

from tvm import relax

from hapi_tvm.passes.dataflow import operator
from hapi_tvm.passes.find_cuts import ELEMENTWISE
from hapi_tvm.passes.graph import dataflow_bindings, used_vars
from hapi_tvm.passes.layouts import Layout, shape_of

# Operators whose result has the layout of its operands of as many channels.
ALIKE = ELEMENTWISE | {
    f"relax.{name}"
    for name in "mean max min sum nn.pad nn.max_pool2d nn.avg_pool2d nn.adaptive_avg_pool2d".split()
}
# Fewer channels than this fill no vector; the schedules of NCHW, with vectors along a row, serve better.
MIN_CHANNELS = 4
# Padding pays where it saves a third of the vectors: 34 channels are 17 blocks of 2, or 3 of 16.
PADDING_GAIN = 1.5
# Parts of a concatenation share a block unless one's own would be more than this many times wider, or is
# padded; then converting costs less than short vectors do.
JOIN_LOSS = 3


def choose_blocks(function: relax.Function, lanes: int) -> dict[relax.Var, Layout]:
    """The layout that each convolution in ``function`` should write; absent where NCHW is better.

    Tensors that meet in an elementwise operator, a pool, a depthwise convolution or a concatenation form
    a class and share one block: the largest divisor of all their channel counts that is at most ``lanes``,
    so a residual sum converts nothing. A class of one channel count may be padded to ``lanes`` instead.
    Expects one dataflow block with static shapes, NCHW.
    """
    classes = _Classes()
    bindings = dataflow_bindings(function)
    for binding in bindings:
        for operand in _alike(binding.value):
            classes.join(binding.var, operand)
    for binding in bindings:
        if _joins_channels(binding.value) and _share(classes, binding, lanes):
            for part in used_vars(binding.value):
                classes.join(binding.var, part)
    chosen = {}
    for binding in bindings:
        if operator(binding.value) == "relax.nn.conv2d" and binding.value.attrs.data_layout == "NCHW":
            layout = _layout(_channels(binding.var), classes.divisor(binding.var), lanes)
            if layout is not None:
                chosen[binding.var] = layout
    return chosen


def is_depthwise(call: relax.Call) -> bool:
    """Whether each channel of an NCHW convolution is filtered for itself."""
    outputs, inputs = shape_of(call.args[1])[:2]
    return inputs == 1 and int(call.attrs.groups) == outputs > 1


def _share(classes: _Classes, concat: relax.VarBinding, lanes: int) -> bool:
    """Whether the parts of a concatenation should be written in one block."""
    parts = used_vars(concat.value)
    block = _widest(math.gcd(*(classes.divisor(var) for var in (concat.var, *parts))), lanes)
    alone = [_layout(_channels(part), classes.divisor(part), lanes) for part in parts]
    return all(own is not None and not own.padded and own.block <= JOIN_LOSS * block for own in alone)


def _layout(channels: int, divisor: int, lanes: int) -> Layout | None:
    """divisor: of all channel counts in the class; equal to ``channels`` where there is one count only."""
    if channels < MIN_CHANNELS:
        return None
    block = _widest(divisor, lanes)
    if divisor == channels and channels / block >= PADDING_GAIN * math.ceil(channels / lanes):
        block = lanes
    return None if block == 1 else Layout(channels, block)


def _widest(channels: int, lanes: int) -> int:
    """The largest divisor of ``channels`` up to ``lanes``."""
    return max(factor for factor in range(1, min(channels, lanes) + 1) if channels % factor == 0)


def _is_feature_map(expr: relax.Expr) -> bool:
    return isinstance(expr, relax.Var) and isinstance(expr.ty, relax.TensorType) and expr.ty.ndim == 4


def _channels(var: relax.Var) -> int:
    return shape_of(var)[1]


def _alike(value: relax.Expr) -> list[relax.Var]:
    """The operands that must be laid out as the result is."""
    name = operator(value)
    if name == "relax.nn.conv2d":
        return [value.args[0]] if is_depthwise(value) else []
    if name not in ALIKE or not isinstance(value.ty, relax.TensorType) or value.ty.ndim != 4:
        return []
    channels = shape_of(value)[1]
    return [var for var in used_vars(value) if _is_feature_map(var) and _channels(var) == channels]


def _joins_channels(value: relax.Expr) -> bool:
    return (
        operator(value) == "relax.concat"
        and value.attrs.axis is not None
        and value.ty.ndim == 4
        and int(value.attrs.axis) % 4 == 1
        and all(_is_feature_map(part) for part in used_vars(value))
    )


class _Classes:
    """Disjoint sets of variables, each with the greatest common divisor of its channel counts."""

    def __init__(self) -> None:
        self._parent: dict[relax.Var, relax.Var] = {}
        self._divisor: dict[relax.Var, int] = {}

    def divisor(self, var: relax.Var) -> int:
        return self._divisor[self._root(var)]

    def join(self, var: relax.Var, other: relax.Var) -> None:
        first, second = self._root(var), self._root(other)
        self._divisor[first] = math.gcd(self._divisor[first], self._divisor[second])
        self._parent[second] = first

    def _root(self, var: relax.Var) -> relax.Var:
        if var not in self._parent:
            self._parent[var], self._divisor[var] = var, _channels(var)
        while self._parent[var] != var:
            var = self._parent[var]
        return var
