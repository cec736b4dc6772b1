"""Put the pieces that the router calls into the router."""

from __future__ import annotations

import tvm
from tvm import relax


@tvm.transform.module_pass(opt_level=0, name="InlinePieces")
class InlinePieces:
    """``main`` with copies of the Relax functions that it calls in their places; they stay callable one by one.

    A call of a Relax function costs the virtual machine (TVM 0.27) a frame and the check of its arguments, and no
    memory is planned across it. A module without ``main`` is returned as it is.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {var: function for var, function in mod.functions_items() if isinstance(function, relax.Function)}
        main = next((var for var in functions if var.name_hint == "main"), None)
        if main is None:
            return mod
        pieces = {var: function for var, function in functions.items() if var != main}
        inlined = functions[main].inline_functions(pieces)
        with_main = dict(mod.functions_items()) | {main: inlined}
        return tvm.IRModule(with_main, attrs=mod.attrs, global_infos=mod.global_infos)
