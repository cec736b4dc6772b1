"""One clip for each pair of bounds, in the form that every later stage knows."""

from __future__ import annotations

import math

import tvm
import tvm_ffi
from tvm import relax, topi

from hapi_tvm.passes.dataflow import Rewriter, array, operator, with_main


@tvm.transform.module_pass(opt_level=0, name="MergeClips")
class MergeClips:
    """Write bounds by constants as ``clip``, and a clip of a clip that nothing else reads as one.

    The ONNX frontend of TVM 0.27 lowers Clip to loops (``call_tir`` of a maximum and a minimum), which no
    graph pass recognises; the torch frontend splits it in two. Runs after FoldWeights, which makes the bounds
    constants; expects ``main`` in A-normal form without control flow.
    """

    def transform_module(self, mod: tvm.IRModule, _context) -> tvm.IRModule:
        merged = with_main(mod, _Merger(mod)(mod["main"]))
        return relax.transform.DeadCodeElimination(["main"])(merged)


class _Merger(Rewriter):
    def __init__(self, mod: tvm.IRModule):
        self._mod = mod

    def rewrite(self, value: relax.Expr) -> relax.Expr:
        bounds = self._bounds(value)
        if bounds is None:
            return value
        data, low, high = bounds
        inner = self._bounds(self.definition(data))
        if inner is not None and self.uses(data) == 1:
            data, inner_low, inner_high = inner
            low, high = (min(max(bound, low), high) for bound in (inner_low, inner_high))
        return relax.op.clip(data, low, high)

    def _bounds(self, value: relax.Expr | None) -> tuple[relax.Expr, float, float] | None:
        """data, low, high of a clip or of a lowered one-sided bound; None for anything else."""
        name = operator(value)
        if name == "relax.clip":
            return value.args[0], *(float(bound.value) for bound in value.args[1:3])
        if name != "relax.call_tir" or len(value.args[1].fields) != 2:
            return None
        data, bound = value.args[1].fields
        bound_value = array(bound)
        if bound_value is None or bound_value.size != 1 or bound_value.ndim != 0:
            return None
        function = self._mod[value.args[0]]
        if tvm_ffi.structural_equal(function, _lowered(topi.maximum, data, bound)):
            return data, float(bound_value), math.inf
        if tvm_ffi.structural_equal(function, _lowered(topi.minimum, data, bound)):
            return data, -math.inf, float(bound_value)
        return None


def _lowered(function, data: relax.Expr, bound: relax.Expr) -> tvm.tirx.PrimFunc:
    """The loops that the ONNX frontend emits for ``function(data, bound)``."""
    builder = relax.BlockBuilder()
    operands = [relax.Var(name, expr.ty) for name, expr in (("data", data), ("bound", bound))]
    with builder.function("main", operands):
        builder.emit_func_output(builder.emit_te(function, *operands))
    mod = builder.finalize()
    return next(f for f in mod.functions.values() if isinstance(f, tvm.tirx.PrimFunc))
