"""The kernels of a plain backbone in a row, to be timed in their places."""

from __future__ import annotations

import tvm
from tvm import relax

from hapi_tvm.passes.cut_segments import segment_name
from hapi_tvm.passes.graph import inline
from hapi_tvm.timeline import TIMELINE


@tvm.transform.module_pass(opt_level=0, name="KernelTimeline")
class KernelTimeline:
    """The only segment becomes ``timeline(x)``, and everything else that is no kernel goes.

    Runs behind DropExits without any exit kept; StampCalls makes it tell the times. A module that has a ``timeline``
    is returned as it is.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if TIMELINE in {var.name_hint for var in mod.get_global_vars()}:
            return mod
        segment = mod[segment_name(0)]
        kernels = {var: f for var, f in mod.functions_items() if not isinstance(f, relax.Function)}
        builder = relax.BlockBuilder(tvm.IRModule(kernels, attrs=mod.attrs))
        x = relax.Var("x", segment.params[0].ty)
        with builder.function(TIMELINE, [x]):
            with builder.dataflow():
                result = builder.emit_output(inline(builder, segment, x))
            builder.emit_func_output(result)
        return builder.finalize()
