"""Carry feature maps in a blocked layout, NCHW[v]c, from the first convolution to the classifier."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from hapi_tvm.passes.block_sizes import choose_blocks, is_depthwise
from hapi_tvm.passes.dataflow import Rewriter, array, operator, with_main
from hapi_tvm.passes.find_cuts import ELEMENTWISE
from hapi_tvm.passes.graph import dataflow_bindings
from hapi_tvm.passes.layouts import Layout, block, merge_groups, pack, pack_weight, shape_of, unblock

# On padding, which is 0 behind a convolution, these may give what is no finite number.
UNBOUNDED = frozenset(f"relax.{name}" for name in ("divide", "log", "power", "rsqrt", "sqrt"))
SPATIAL = {2, 3}


@tvm.transform.module_pass(opt_level=0, name="BlockedLayout")
class BlockedLayout:
    """Convolutions write NCHW[v]c; what follows stays in it until an operator needs NCHW.

    v: ``vector_width`` lanes of the target, or where that does not fit, what ``choose_blocks`` finds; with a
    width of 1 nothing is blocked. The first convolution reads NCHW as it is. Elementwise operators, pools,
    means over H and W, sums with a shortcut, gates [1, C, 1, 1] and concatenations over channels carry the
    layout; weights and constants are packed here, in NumPy. Every other operator is given NCHW, and 1x1
    maps are converted by a reshape, which moves nothing.

    Runs after AttachExits, over the whole over-provisioned function, so that what crosses a cut stays
    blocked; variables keep their names. Expects one dataflow block with static shapes, NCHW; a
    convolution whose weights are computed stays NCHW. A module that holds a blocked convolution already
    is returned as it is.
    """

    def __init__(self, vector_width: int):
        self.vector_width = vector_width

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        main = mod["main"]
        if any(_writes_blocks(binding.value) for binding in dataflow_bindings(main)):
            return mod
        return with_main(mod, _Blocker(choose_blocks(main, self.vector_width))(main))


def _writes_blocks(value: relax.Expr) -> bool:
    return operator(value) == "relax.nn.conv2d" and value.attrs.out_layout != "NCHW"


# What is bound in place of a call, and its layout, None for NCHW. No answer: the operator needs NCHW.
Carried = tuple[relax.Expr, Layout | None] | None
Rule = Callable[["_Blocker", relax.Call], Carried]


class _Blocker(Rewriter):
    """chosen: the layout that a convolution writes, by the variable of the original function."""

    def __init__(self, chosen: dict[relax.Var, Layout]):
        self._chosen = chosen
        self._layouts: dict[relax.Var, Layout] = {}
        self._converted: dict[tuple[relax.Var, Layout | None], relax.Var] = {}

    def rewrite(self, value: relax.Expr) -> relax.Expr:
        if isinstance(value, relax.Var):
            return value
        rule = _RULES.get(operator(value))
        carried = rule(self, value) if rule is not None else None
        if carried is None:
            return self._plain(value)
        replacement, layout = carried
        var = self.emit(replacement, self.bound.name)
        if layout is not None:
            self._layouts[var] = layout
        return var

    def result(self, value: relax.Expr) -> relax.Expr:
        return self._plain(value)

    @property
    def chosen(self) -> Layout | None:
        return self._chosen.get(self.bound)

    def layout(self, expr: relax.Expr) -> Layout | None:
        """Of a new variable; None stands for NCHW, and for what is no feature map."""
        return self._layouts.get(expr) if isinstance(expr, relax.Var) else None

    def convert(self, var: relax.Var, wanted: Layout | None) -> relax.Var:
        """``var`` in another layout; each conversion is made once."""
        current = self.layout(var)
        if current == wanted:
            return var
        if current is not None and wanted is not None:
            return self.convert(self.convert(var, None), wanted)
        if (var, wanted) not in self._converted:
            made = unblock(self.emit, var, current) if wanted is None else block(self.emit, var, wanted)
            self._converted[var, wanted] = made
            if wanted is not None:
                self._layouts[made] = wanted
        return self._converted[var, wanted]

    def _plain(self, expr: relax.Expr) -> relax.Expr:
        """``expr`` with every operand as the original function had it."""
        if isinstance(expr, relax.Var):
            return self.convert(expr, None)
        if isinstance(expr, relax.Call):
            return relax.Call(expr.op, [self._plain(arg) for arg in expr.args], expr.attrs, expr.ty_args)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._plain(field) for field in expr.fields])
        return expr


def _convolution(net: _Blocker, call: relax.Call) -> Carried:
    outputs, weight, attrs = net.chosen, array(call.args[1]), call.attrs
    if outputs is None or weight is None:
        return None
    data, groups = call.args[0], int(attrs.groups)
    if is_depthwise(call):
        data, inputs, groups = net.convert(data, outputs), 1, outputs.lanes
    else:
        weight, groups = _whole_blocks(weight, groups, net.layout(data), outputs)
        inputs = _lanes(net.layout(data), weight.shape[1])
    layout = net.layout(data)
    convolved = op.nn.conv2d(
        data,
        relax.const(pack_weight(weight, outputs, inputs)),
        strides=attrs.strides,
        padding=attrs.padding,
        dilation=attrs.dilation,
        groups=groups,
        data_layout="NCHW" if layout is None else layout.name,
        kernel_layout=f"OIHW{outputs.block}o",
        out_layout=outputs.name,
    )
    return convolved, outputs


def _lanes(layout: Layout | None, channels: int) -> int:
    return layout.lanes if layout is not None and layout.padded else channels


def _whole_blocks(
    weight: np.ndarray, groups: int, inputs: Layout | None, outputs: Layout
) -> tuple[np.ndarray, int]:
    """The same convolution in fewer groups, none of which ends inside a block of either side."""
    if outputs.padded or (inputs is not None and inputs.padded):
        return merge_groups(weight, groups, groups), 1
    written, read = outputs.channels // groups, weight.shape[1]
    merged = next(
        count
        for count in range(1, groups + 1)
        if groups % count == 0
        and count * written % outputs.block == 0
        and (inputs is None or count * read % inputs.block == 0)
    )
    return merge_groups(weight, groups, merged), groups // merged


def _elementwise(net: _Blocker, call: relax.Call) -> Carried:
    layout = next((net.layout(arg) for arg in call.args if net.layout(arg) is not None), None)
    if layout is None or (layout.padded and operator(call) in UNBOUNDED):
        return None
    if not all(_broadcasts(net, arg, layout) for arg in call.args):
        return None
    args = [_operand(net, arg, layout) for arg in call.args]
    return relax.Call(call.op, args, call.attrs, call.ty_args), layout


def _broadcasts(net: _Blocker, arg: relax.Expr, layout: Layout) -> bool:
    """Whether ``arg`` is no tensor, a number, a constant of up to four axes, or [N, C or 1, H, W]."""
    if array(arg) is not None:
        return arg.ty.ndim <= 4
    if not isinstance(arg, relax.Var) or arg.ty.ndim == 0:
        return True
    if net.layout(arg) is not None:
        return net.layout(arg).channels == layout.channels
    return arg.ty.ndim == 4 and shape_of(arg)[1] in (1, layout.channels)


def _operand(net: _Blocker, arg: relax.Expr, layout: Layout) -> relax.Expr:
    value = array(arg)
    if value is not None:
        if value.ndim == 0:
            return arg
        return relax.const(pack(value.reshape((1,) * (4 - value.ndim) + value.shape), layout))
    if isinstance(arg, relax.Var) and arg.ty.ndim > 0:
        return net.convert(arg, layout)
    return arg


def _pool(net: _Blocker, call: relax.Call) -> Carried:
    layout, attrs = net.layout(call.args[0]), call.attrs
    if layout is None:
        return None
    pool = op.nn.max_pool2d if operator(call) == "relax.nn.max_pool2d" else op.nn.avg_pool2d
    pooled = pool(
        call.args[0],
        pool_size=attrs.pool_size,
        strides=attrs.strides,
        padding=attrs.padding,
        dilation=attrs.dilation,
        ceil_mode=attrs.ceil_mode,
        count_include_pad=attrs.count_include_pad,
        layout=layout.name,
        out_layout=layout.name,
    )
    return pooled, layout


def _adaptive_pool(net: _Blocker, call: relax.Call) -> Carried:
    """A global pool is a mean, which has a schedule of its own."""
    data, layout = call.args[0], net.layout(call.args[0])
    if layout is None:
        return None
    size = shape_of(net.bound)[2:]
    if size == [1, 1]:
        return op.mean(data, axis=[2, 3], keepdims=True), layout
    return op.nn.adaptive_avg_pool2d(data, size, layout=layout.name, out_layout=layout.name), layout


def _reduction(net: _Blocker, call: relax.Call) -> Carried:
    """Over H and W. Where their axes go, what remains is [N, C], by a reshape."""
    data, axes = call.args[0], call.attrs.axis
    layout = net.layout(data)
    if layout is None or axes is None:
        return None
    over = {int(axis) % 4 for axis in axes}
    kept = _REDUCTIONS[operator(call)](data, axis=sorted(over), keepdims=True)
    if call.attrs.keepdims and over <= SPATIAL:
        return kept, layout
    if over != SPATIAL:
        return None
    return _flat(net, net.emit(kept), layout), None


def _reshape(net: _Blocker, call: relax.Call) -> Carried:
    """Blocked or not, the channels of 1x1 maps lie in order. A reshape of a reshape is one."""
    data, layout = call.args[0], net.layout(call.args[0])
    if layout is None:
        source = net.definition(data)
        return (_reshaped(net, source.args[0]), None) if operator(source) == "relax.reshape" else None
    if shape_of(data)[2:4] != [1, 1]:
        return None
    return _flat(net, data, layout), None


def _flat(net: _Blocker, data: relax.Expr, layout: Layout) -> relax.Expr:
    """Blocked 1x1 maps in the shape of the bound variable."""
    return _reshaped(net, unblock(net.emit, data, layout) if layout.padded else data)


def _reshaped(net: _Blocker, data: relax.Expr) -> relax.Expr:
    return op.reshape(data, shape_of(net.bound))


def _pad(net: _Blocker, call: relax.Call) -> Carried:
    layout, attrs = net.layout(call.args[0]), call.attrs
    widths = [int(width) for width in attrs.pad_width]
    if layout is None or any(widths[:4]) or attrs.pad_mode != "constant":
        return None
    return op.nn.pad(call.args[0], [*widths, 0, 0], attrs.pad_mode, float(attrs.pad_value)), layout


def _concatenation(net: _Blocker, call: relax.Call) -> Carried:
    parts, axis = call.args[0], call.attrs.axis
    if not isinstance(parts, relax.Tuple) or axis is None:
        return None
    layouts = [net.layout(part) for part in parts.fields]
    if None in layouts or len({layout.block for layout in layouts}) > 1:
        return None
    if int(axis) % 4 != 1 or any(layout.padded for layout in layouts):
        return None
    channels = sum(layout.channels for layout in layouts)
    return op.concat(list(parts.fields), axis=1), Layout(channels, layouts[0].block)


_REDUCTIONS = {"relax.mean": op.mean, "relax.sum": op.sum, "relax.max": op.max, "relax.min": op.min}
_RULES: dict[str, Rule] = {
    "relax.nn.conv2d": _convolution,
    **dict.fromkeys(ELEMENTWISE - {"relax.nn.prelu"}, _elementwise),
    "relax.nn.max_pool2d": _pool,
    "relax.nn.avg_pool2d": _pool,
    "relax.nn.adaptive_avg_pool2d": _adaptive_pool,
    **dict.fromkeys(_REDUCTIONS, _reduction),
    "relax.nn.pad": _pad,
    "relax.concat": _concatenation,
    **dict.fromkeys(("relax.reshape", "relax.flatten", "relax.squeeze"), _reshape),
}
