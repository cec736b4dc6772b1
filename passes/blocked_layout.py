"""Carry convolutions in a blocked layout, NCHW[v]c, v lanes of the target's vectors."""

from __future__ import annotations

import tvm
from tvm import relax, topi

from hapi_tvm.passes.dataflow import operator
from hapi_tvm.passes.graph import dataflow_bindings


@tvm.transform.module_pass(opt_level=0, name="BlockedLayout")
class BlockedLayout:
    """Rewrite convolutions to NCHW[v]c; adds, activations and pools between them follow.

    Runs after AttachExits, over the whole over-provisioned function, so that what crosses a cut stays
    blocked. Expects constant weights (with weights that are computed, ConvertLayout of TVM 0.27 dies
    with a segmentation fault). Convolutions whose channels v does not divide stay as they are. A module
    that holds a blocked convolution already is returned as it is: ConvertLayout takes 4 axes only.
    """

    def __init__(self, vector_width: int):
        v = vector_width
        self.layouts = {"relax.nn.conv2d": [f"NCHW{v}c", f"OIHW{v}i{v}o"]}

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if any(_is_blocked(binding.value) for binding in dataflow_bindings(mod["main"])):
            return mod
        return tvm.transform.Sequential(
            [relax.transform.ConvertLayout(self.layouts), relax.transform.Normalize()]
        )(mod)


def _is_blocked(value: relax.Expr) -> bool:
    return operator(value) == "relax.nn.conv2d" and len(value.attrs.data_layout) > 4


def legalize_conv2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """Lower a convolution, blocked or not; the stock LegalizeOps of TVM 0.27 leaves blocked ones alone."""
    attrs = call.attrs
    if len(attrs.data_layout) == 4:
        return tvm.ir.Op.get("relax.nn.conv2d").get_attr("FLegalize")(builder, call)
    return builder.call_te(
        topi.nn.conv2d_NCHWc,
        call.args[0],
        call.args[1],
        stride=[int(n) for n in attrs.strides],
        padding=[int(n) for n in attrs.padding],
        dilation=[int(n) for n in attrs.dilation],
        layout=attrs.data_layout,
        out_layout=attrs.out_layout,
        out_dtype=attrs.out_dtype or "float32",
        primfunc_name_hint="conv2d_blocked",
    )
