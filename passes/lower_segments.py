"""Lower the segments and branches to chains of fused kernels."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import tvm
from tvm import relax

from hapi_tvm.passes.blocked_ops import legalize_conv2d
from hapi_tvm.passes.dataflow import operator
from hapi_tvm.passes.graph import dataflow_bindings
from hapi_tvm.passes.winograd import ConvolutionShape


@tvm.transform.module_pass(opt_level=0, name="LowerSegments")
class LowerSegments:
    """Legalise and fuse, so that each Relax function is a chain of calls to TIR kernels, and of reshapes.

    Runs after CutSegments, with a target in scope, which some of TVM's lowerings ask for. Kernels that
    several functions call are shared: FuseTIR makes one for each structure. A module without any operator
    left to lower is returned as it is.

    winograd_tiles: which convolutions Winograd computes, and the tile of each; the others are summed directly.
    """

    def __init__(self, winograd_tiles: Mapping[ConvolutionShape, int] = MappingProxyType({})):
        self.winograd_tiles = winograd_tiles

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if _is_lowered(mod):
            return mod
        return tvm.transform.Sequential(
            [
                relax.transform.LegalizeOps({"relax.nn.conv2d": self._legalize_conv2d}),
                relax.transform.AnnotateTIROpPattern(),
                relax.transform.FuseOps(),
                relax.transform.FuseTIR(),
                # A reshape moves nothing: as a kernel it would be tuned, priced and run.
                relax.transform.RewriteDataflowReshape(),
                relax.transform.DeadCodeElimination(),
            ]
        )(_exposed(mod))

    def _legalize_conv2d(self, builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        return legalize_conv2d(builder, call, self.winograd_tiles)


def _is_lowered(mod: tvm.IRModule) -> bool:
    return all(
        operator(binding.value) in ("", "relax.call_tir", "relax.reshape")
        for function in mod.functions.values()
        if isinstance(function, relax.Function)
        for binding in dataflow_bindings(function)
    )


def _exposed(mod: tvm.IRModule) -> tvm.IRModule:
    """Every Relax function under its own global symbol: without one, dead-code elimination takes it."""
    return tvm.IRModule(
        {
            var: function.with_attr("global_symbol", var.name_hint)
            if isinstance(function, relax.Function)
            else function
            for var, function in mod.functions_items()
        }
    )
