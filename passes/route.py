"""The router: ``main``, which runs segments until an exit fires."""

from __future__ import annotations

import tvm
from tvm import relax, te
from tvm.ir import GlobalVar

from hapi_tvm.passes.cut_segments import segment_name


@tvm.transform.module_pass(opt_level=0, name="Route")
class Route:
    """Add ``main(x, thresholds) -> (probabilities [1, K], exit int32 [], confidence [1])``.

    thresholds: float32 [E], a run-time input; exit i fires where ``confidence >= thresholds[i]``, so
    infinity disables it. The index E stands for the backbone's own end. Behind an exit that fires no
    later kernel is called. Runs after DropExits; expects ``segment_<i>`` and ``exit_<i>``. With no exit
    at all, ``main`` takes ``x`` alone. A module that has a ``main`` is returned as it is.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if "main" in {var.name_hint for var in mod.get_global_vars()}:
            return mod
        builder = relax.BlockBuilder(tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs))
        names = {var.name_hint: var for var in builder.get().get_global_vars()}
        exits = sum(name.startswith("exit_") for name in names)
        gates = [builder.add_func(_gate(index, exits), f"gate_{index:02d}") for index in range(exits)]
        builder.add_func(_Router(mod, names, gates).main(), "main")
        return relax.transform.Normalize()(builder.finalize())


class _Router:
    def __init__(self, mod: tvm.IRModule, names: dict[str, GlobalVar], gates: list[GlobalVar]):
        self.mod = mod
        self.names = names
        self.gates = gates
        self.thresholds = relax.Var("thresholds", relax.TensorType((len(gates),), "float32"))
        last = mod[names[segment_name(len(gates))]].ret_ty
        self.answer = relax.TupleType([last.fields[0], relax.TensorType((), "int32"), last.fields[1]])

    def main(self) -> relax.Function:
        x = relax.Var("x", self.mod[self.names[segment_name(0)]].params[0].ty)
        params = [x, self.thresholds] if self.gates else [x]
        body = self._from(0, x)
        return relax.Function(params, body, self.answer).with_attr("global_symbol", "main")

    def _from(self, index: int, entry: relax.Var) -> relax.SeqExpr:
        """Everything behind exit ``index - 1``, given the tensor there."""
        bindings: list[relax.Binding] = []

        def bind(name: str, value: relax.Expr, ty: relax.Type) -> relax.Var:
            var = relax.Var(name, ty)
            bindings.append(relax.VarBinding(var, value))
            return var

        def call(name: str, argument: relax.Var) -> relax.Var:
            return bind(name, relax.Call(self.names[name], [argument]), self.mod[self.names[name]].ret_ty)

        def answer(pair: relax.Var) -> relax.Var:
            fields = [relax.TupleGetItem(pair, 0), relax.const(index, "int32"), relax.TupleGetItem(pair, 1)]
            return bind("answer", relax.Tuple(fields), self.answer)

        tensor = call(segment_name(index), entry)
        if index == len(self.gates):
            return _sequence(bindings, answer(tensor))

        pair = call(f"exit_{index:02d}", tensor)
        verdict = relax.TensorType((), "bool")
        confidence = bind("confidence", relax.TupleGetItem(pair, 1), pair.ty.fields[1])
        fires = bind(
            "fires", relax.call_tir(self.gates[index], [confidence, self.thresholds], out_ty=verdict), verdict
        )
        outer, bindings = bindings, []
        leave = _sequence(bindings, answer(pair))
        bindings = outer
        return _sequence(
            bindings, bind("routed", relax.If(fires, leave, self._from(index + 1, tensor)), self.answer)
        )


def _sequence(bindings: list[relax.Binding], result: relax.Expr) -> relax.SeqExpr:
    return relax.SeqExpr([relax.BindingBlock(bindings)], result)


def _gate(index: int, exits: int) -> tvm.tirx.PrimFunc:
    """``confidence[0] >= thresholds[index]`` as a scalar bool."""
    confidence = te.placeholder((1,), "float32", "confidence")
    thresholds = te.placeholder((exits,), "float32", "thresholds")
    fires = te.compute((), lambda: confidence[0] >= thresholds[index], "fires")
    return te.create_prim_func([confidence, thresholds, fires]).without_attr("global_symbol")
