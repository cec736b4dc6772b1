"""Drop the exits that a design leaves out, and merge the segments between those that stay."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from hapi_tvm.errors import BuildError
from hapi_tvm.passes.cut_segments import exit_name, segment_name
from hapi_tvm.passes.graph import inline
from hapi_tvm.records import Option


@tvm.transform.module_pass(opt_level=0, name="DropExits")
class DropExits:
    """Keep the branches in ``kept`` as ``exit_00``, ``exit_01``, ...; merge segments up to each of them.

    Runs after LowerSegments: segments are chains of kernels by then, and a merged segment is the chain
    one after the other. Expects ``segment_<i>`` for every candidate and one more, and ``exit_<i>_<kind>``
    for each kept option. A module that holds ``exit_00`` already is returned as it is. kept: at most one
    option for each candidate, in network order; none leaves the plain backbone.
    """

    def __init__(self, kept: Sequence[Option]):
        self.kept = list(kept)
        places = [option.candidate for option in kept]
        if places != sorted(set(places)):
            raise BuildError(
                f"DropExits: kept options {self.kept} must be in network order, at most one for a candidate"
            )

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {var.name_hint: f for var, f in mod.functions_items() if isinstance(f, relax.Function)}
        if "exit_00" in functions:
            return mod
        absent = [exit_name(option) for option in self.kept if exit_name(option) not in functions]
        if absent:
            raise BuildError(
                f"DropExits: the module holds no {', '.join(absent)}; the design belongs to another network"
            )
        count = sum(name.startswith("segment_") for name in functions)
        kernels = {var: f for var, f in mod.functions_items() if not isinstance(f, relax.Function)}
        ends = [option.candidate for option in self.kept] + [count - 1]
        builder = relax.BlockBuilder(tvm.IRModule(kernels, attrs=mod.attrs))
        begin = 0
        for index, end in enumerate(ends):
            chain = [functions[segment_name(i)] for i in range(begin, end + 1)]
            builder.add_func(_chained(segment_name(index), chain), segment_name(index))
            begin = end + 1
        for index, option in enumerate(self.kept):
            name = f"exit_{index:02d}"
            builder.add_func(_chained(name, [functions[exit_name(option)]]), name)
        return relax.transform.DeadCodeElimination()(builder.finalize())


def _chained(name: str, functions: Sequence[relax.Function]) -> relax.Function:
    """One function that feeds each function's result to the next."""
    builder = relax.BlockBuilder()
    param = relax.Var("t", functions[0].params[0].ty)
    value: relax.Expr = param
    with builder.function(name, [param]):
        with builder.dataflow():
            for function in functions:
                value = inline(builder, function, value)
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    return builder.finalize()[name]
