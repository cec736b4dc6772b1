"""Run the pieces of a network one after the other, to be timed in their places."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from hapi_tvm.timeline import TIMELINE, Step

NOTHING = "nothing"


@tvm.transform.module_pass(opt_level=0, name="PieceTimeline")
class PieceTimeline:
    """Add ``timeline(x)``, which calls a piece that does nothing and then every step.

    The first call shows what calling a piece takes by itself. Runs behind LowerSegments; StampCalls makes it tell the
    times. A module that has a ``timeline`` is returned as it is. steps: of functions of one parameter.
    """

    def __init__(self, steps: Sequence[Step]):
        self.steps = list(steps)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {var.name_hint: f for var, f in mod.functions_items() if isinstance(f, relax.Function)}
        if TIMELINE in functions:
            return mod
        kernels = {var: f for var, f in mod.functions_items() if not isinstance(f, relax.Function)}
        builder = relax.BlockBuilder(tvm.IRModule(kernels, attrs=mod.attrs))
        pieces = {name: builder.add_func(function, name) for name, function in functions.items()}
        entry = functions[self.steps[0].function].params[0].ty
        nothing = builder.add_func(_nothing(entry), NOTHING)
        x = relax.Var("x", entry)
        with builder.function(TIMELINE, [x]):
            builder.emit(relax.Call(nothing, [x]))
            results: list[relax.Var] = []
            for step in self.steps:
                read = x if step.reads is None else results[step.reads]
                results.append(builder.emit(relax.Call(pieces[step.function], [read])))
            builder.emit_func_output(results[-1])
        return builder.finalize()


def _nothing(ty: relax.TensorType) -> relax.Function:
    builder = relax.BlockBuilder()
    t = relax.Var("t", ty)
    with builder.function(NOTHING, [t]):
        builder.emit_func_output(t)
    return builder.finalize()[NOTHING]
