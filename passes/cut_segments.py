"""Cut the over-provisioned function into one function for each segment and each exit branch."""

from __future__ import annotations

from collections.abc import Sequence

import tvm
from tvm import relax

from hapi_tvm.errors import BuildError
from hapi_tvm.passes.attach_exits import cut_name
from hapi_tvm.passes.graph import copy_bindings, dataflow_bindings, needed_bindings, result_of
from hapi_tvm.records import Option


def segment_name(index: int) -> str:
    return f"segment_{index:02d}"


def exit_name(option: Option) -> str:
    return f"exit_{option.candidate:02d}_{option.kind}"


@tvm.transform.module_pass(opt_level=0, name="CutSegments")
class CutSegments:
    """``main`` becomes ``segment_<i>(t) -> t'`` and ``exit_<i>_<kind>(t) -> (p, c)``.

    Segment i leads from candidate i - 1 (or the input) to candidate i; the last one returns the
    backbone's own ``(p, c)``. Runs after AttachExits and whatever chooses layouts, and before
    legalisation: a candidate ends an elementwise chain, so no fusion group lies across a cut. Expects
    the outputs of AttachExits for ``options``; a module without ``main`` is returned as it is.
    """

    def __init__(self, candidates: int, options: Sequence[Option]):
        self.candidates = candidates
        self.options = list(options)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if "main" not in {var.name_hint for var in mod.get_global_vars()}:
            return mod
        main = mod["main"]
        bindings = dataflow_bindings(main)
        by_name = {binding.var.name: binding.var for binding in bindings}
        missing = [cut_name(i) for i in range(self.candidates) if cut_name(i) not in by_name]
        if missing:
            raise BuildError(
                f"CutSegments: main binds no {', '.join(missing)}; a pass before this one renamed them"
            )
        cuts = [by_name[cut_name(i)] for i in range(self.candidates)]
        outputs = list(result_of(main).fields)

        functions = {var: f for var, f in mod.functions_items() if var.name_hint != "main"}
        entry = main.params[0]
        for index, cut in enumerate(cuts):
            functions[segment_name(index)] = _function_between(bindings, entry, [cut])
            entry = cut
        functions[segment_name(self.candidates)] = _function_between(bindings, entry, outputs[-2:])
        for index, option in enumerate(self.options):
            pair = outputs[2 * index : 2 * index + 2]
            functions[exit_name(option)] = _function_between(bindings, cuts[option.candidate], pair)
        return tvm.IRModule(functions, attrs=mod.attrs)


def _function_between(
    bindings: Sequence[relax.VarBinding], entry: relax.Var, results: Sequence[relax.Var]
) -> relax.Function:
    """A function from ``entry`` to ``results``; one result is returned bare, several as a tuple."""
    needed = needed_bindings(bindings, results, {entry})
    builder = relax.BlockBuilder()
    param = relax.Var("t", entry.ty)
    known: dict[relax.Var, relax.Expr] = {entry: param}
    with builder.function("between", [param]):
        with builder.dataflow():
            copy_bindings(builder, needed, known)
            values = [known[var] for var in results]
            result = builder.emit_output(values[0] if len(values) == 1 else relax.Tuple(values))
        builder.emit_func_output(result)
    return builder.finalize()["between"].without_attr("global_symbol")
