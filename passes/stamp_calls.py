"""Note the time between the calls of a function, on the machine that runs it."""

from __future__ import annotations

import tvm
from tvm import relax, te
from tvm.ir import GlobalVar

from hapi_tvm.timeline import CLOCK_WORDS, TIMELINE

CLOCK_MONOTONIC = 1  # of Linux, <time.h>


@tvm.transform.module_pass(opt_level=0, name="StampCalls")
class StampCalls:
    """``timeline(x)`` becomes ``timeline(x, stamps) -> stamps``: the time before its first call and behind every one.

    stamps: int64 [calls + 1, 2], a ``struct timespec`` a row; what the function returned is dropped. A call is one of
    a kernel or of another function of the module, and builtins of the virtual machine are none. Runs behind
    CallTIRRewrite, when no pass merges, moves or removes calls any more. A module without ``timeline``, or with one
    that has its stamps, is returned as it is. For CPUs of a 64-bit Linux: the stamp is a call of ``clock_gettime``.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        names = {var.name_hint for var in mod.get_global_vars()}
        if TIMELINE not in names or _clock_name(0) in names:
            return mod
        timeline = mod[TIMELINE]
        calls = sum(_is_call(binding.value) for block in timeline.body.blocks for binding in block.bindings)
        others = {var: function for var, function in mod.functions_items() if var.name_hint != TIMELINE}
        builder = relax.BlockBuilder(tvm.IRModule(others, attrs=mod.attrs))
        clocks = [builder.add_func(_clock(row, calls + 1), _clock_name(row)) for row in range(calls + 1)]
        builder.add_func(_stamped(timeline, clocks), TIMELINE)
        return relax.transform.Normalize()(builder.finalize())


def _is_call(value: relax.Expr) -> bool:
    return isinstance(value, relax.Call) and isinstance(value.op, GlobalVar)


def _stamped(timeline: relax.Function, clocks: list[GlobalVar]) -> relax.Function:
    stamps = relax.Var("stamps", relax.TensorType((len(clocks), CLOCK_WORDS), "int64"))
    nothing = relax.TupleType([])
    waiting = iter(clocks)

    def stamp() -> relax.VarBinding:
        return relax.VarBinding(relax.Var("_", nothing), relax.Call(next(waiting), [stamps], ty_args=[nothing]))

    bindings: list[relax.Binding] = []
    for block in timeline.body.blocks:
        for binding in block.bindings:
            if _is_call(binding.value):
                if not any(_is_call(earlier.value) for earlier in bindings):
                    bindings.append(stamp())
                bindings += [binding, stamp()]
            else:
                bindings.append(binding)
    body = relax.SeqExpr([relax.BindingBlock(bindings)], stamps)
    return relax.Function([*timeline.params, stamps], body, stamps.ty, is_pure=False, attrs=timeline.attrs)


def _clock_name(row: int) -> str:
    return f"clock_{row:03d}"


def _clock(row: int, rows: int) -> tvm.tirx.PrimFunc:
    """Writes the time to ``stamps[row]``."""

    def read_clock(_inputs: list[tvm.tirx.Buffer], outputs: list[tvm.tirx.Buffer]) -> tvm.tirx.Stmt:
        place = tvm.tirx.address_of(outputs[0][row, 0])
        return tvm.tirx.Evaluate(tvm.tirx.call_extern("int32", "clock_gettime", CLOCK_MONOTONIC, place))

    stamps = te.extern((rows, CLOCK_WORDS), [], read_clock, name="stamps", dtype="int64")
    return te.create_prim_func([stamps]).without_attr("global_symbol")
