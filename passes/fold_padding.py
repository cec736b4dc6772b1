"""Zeros around a feature map that only a convolution reads are that convolution's own padding."""

from __future__ import annotations

import tvm
from tvm import relax
from tvm.relax import op

from hapi_tvm.passes.dataflow import Rewriter, operator, with_main


@tvm.transform.module_pass(opt_level=0, name="FoldPadding")
class FoldPadding:
    """Move constant zero padding over H and W into the convolutions of ``main`` that read it.

    Networks from TensorFlow pad more behind than before; the torch frontend keeps that as an operator,
    which would run as a kernel of its own and offer itself as a place for an exit. An import pass; expects
    ``main`` in A-normal form without control flow, convolutions as NCHW/OIHW.
    """

    def transform_module(self, mod: tvm.IRModule, _context) -> tvm.IRModule:
        return with_main(mod, _Folder()(mod["main"]))


class _Folder(Rewriter):
    def rewrite(self, value: relax.Expr) -> relax.Expr:
        if operator(value) != "relax.nn.conv2d" or value.attrs.data_layout != "NCHW":
            return value
        pad, attrs = self.definition(value.args[0]), value.attrs
        added = _zeros_around(pad)
        if added is None:
            return value
        return op.nn.conv2d(
            pad.args[0],
            value.args[1],
            strides=attrs.strides,
            padding=[int(own) + more for own, more in zip(attrs.padding, added, strict=True)],
            dilation=attrs.dilation,
            groups=attrs.groups,
            out_dtype=attrs.out_dtype,
        )


def _zeros_around(value: relax.Expr | None) -> list[int] | None:
    """top, left, bottom, right of a constant zero padding over H and W only; None for anything else."""
    if operator(value) != "relax.nn.pad" or value.attrs.pad_mode != "constant" or value.attrs.pad_value != 0:
        return None
    widths = [int(width) for width in value.attrs.pad_width]
    if any(widths[:4]) or min(widths) < 0:
        return None
    top, bottom, left, right = widths[4:]
    return [top, left, bottom, right]
