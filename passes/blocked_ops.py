"""What a convolution on blocked feature maps computes, and how such operators are lowered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tvm
from tvm import relax, te, tirx, topi

from hapi_tvm.passes.dataflow import array
from hapi_tvm.passes.winograd import ConvolutionShape, transform_weight, winograd, winograd_shape

# TVM's OpPatternKind of convolutions: elementwise operators behind them are fused with them.
OUT_ELEMENTWISE_FUSABLE = 4


def convolution(
    data: te.Tensor,
    weight: te.Tensor,
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> te.Tensor:
    """A convolution that writes blocks: [N, O / v, OH, OW, v].

    data: [N, C, H, W], or [N, C / a, H, W, a]. weight: [O / v, C / groups, kh, kw, v], which the loops over
    input channel, kernel row and kernel column read from front to back. padding: top, left, bottom, right.
    With one group, a need not be v. Grouped, a divides C / groups and v divides O / groups, or each group
    is one channel (depthwise), a is v, and no channel is reduced. Expects what ``BlockedLayout`` emits.
    """
    blocks, inputs, rows, columns, lanes = topi.utils.get_const_tuple(weight.shape)
    batch, _, height, width, *_ = topi.utils.get_const_tuple(data.shape)
    top, left, bottom, right = padding
    spread = [step * (extent - 1) + 1 for step, extent in zip(dilation, (rows, columns), strict=True)]
    out_height = (height + top + bottom - spread[0]) // strides[0] + 1
    out_width = (width + left + right - spread[1]) // strides[1] + 1
    padded = data
    if any(padding):
        inner = [0] * (len(data.shape) - 4)
        padded = topi.nn.pad(data, [0, 0, top, left, *inner], [0, 0, bottom, right, *inner], name="data_pad")
    read = _reader(padded)
    row, column = te.reduce_axis((0, rows), name="kh"), te.reduce_axis((0, columns), name="kw")

    def place(y: tirx.PrimExpr, x: tirx.PrimExpr) -> tuple[tirx.PrimExpr, tirx.PrimExpr]:
        return y * strides[0] + row * dilation[0], x * strides[1] + column * dilation[1]

    def depthwise(n, block, y, x, lane):
        value = padded[(n, block, *place(y, x), lane)]
        return te.sum(value * weight[block, 0, row, column, lane], axis=[row, column])

    channel = te.reduce_axis((0, inputs), name="ic")

    def grouped(n, block, y, x, lane):
        first = block // (blocks // groups) * inputs if groups > 1 else 0
        value = read(n, first, channel, *place(y, x))
        return te.sum(value * weight[block, channel, row, column, lane], axis=[channel, row, column])

    body = depthwise if inputs == 1 and groups == blocks * lanes > 1 else grouped
    return te.compute((batch, blocks, out_height, out_width, lanes), body, name="conv2d_blocked")


def _reader(data: te.Tensor) -> Callable[..., tirx.PrimExpr]:
    """Reads channel ``first + channel`` of ``data``; in blocked data ``first`` begins a block."""
    if len(data.shape) == 4:
        return lambda n, first, channel, y, x: data[n, first + channel, y, x]
    lanes = int(data.shape[4])
    return lambda n, first, channel, y, x: data[n, first // lanes + channel // lanes, y, x, channel % lanes]


def legalize_conv2d(
    builder: relax.BlockBuilder, call: relax.Call, winograd_tiles: Mapping[ConvolutionShape, int]
) -> relax.Expr:
    """Lower a convolution, blocked or not; the stock LegalizeOps of TVM 0.27 leaves blocked ones alone.

    winograd_tiles: the tile of each shape that Winograd computes; the others are summed directly.
    """
    attrs = call.attrs
    if attrs.out_layout == "NCHW":
        return tvm.ir.Op.get("relax.nn.conv2d").get_attr("FLegalize")(builder, call)
    padding = [int(extent) for extent in attrs.padding]
    tile = winograd_tiles.get(winograd_shape(call))
    if tile is not None:
        return builder.call_te(
            winograd,
            call.args[0],
            relax.const(transform_weight(array(call.args[1]), tile)),
            padding=padding,
            tile=tile,
            primfunc_name_hint="conv2d_winograd",
            # Several stages would count as opaque, and no bias or activation would join them.
            primfunc_attrs={"op_pattern": OUT_ELEMENTWISE_FUSABLE},
        )
    return builder.call_te(
        convolution,
        call.args[0],
        call.args[1],
        strides=[int(step) for step in attrs.strides],
        padding=padding,
        dilation=[int(step) for step in attrs.dilation],
        groups=int(attrs.groups),
        primfunc_name_hint="conv2d_blocked",
    )
