"""The router: ``main``, which runs segments until an exit fires."""

from __future__ import annotations

import tvm
from tvm import relax, te
from tvm.ir import GlobalVar
from tvm.relax import op

from hapi_tvm.passes.cut_segments import segment_name

# What TVM calls a kernel of the host's in a module for another device.
HOST_FUNCTION = "tirx.is_host_func"


@tvm.transform.module_pass(opt_level=0, name="Route")
class Route:
    """Add ``main(x, thresholds) -> (probabilities [1, K], exit int32 [], confidence [1])``.

    thresholds: float32 [E], a run-time input; exit i fires where ``confidence >= thresholds[i]``, so
    infinity disables it. The index E stands for the backbone's own end. Behind an exit that fires no
    later kernel is called. Runs after DropExits; expects ``segment_<i>`` and ``exit_<i>``. With no exit
    at all, ``main`` takes ``x`` alone. A module that has a ``main`` is returned as it is.

    target: of the module. Where it has a host of its own, as a GPU has, the exits are decided there: a
    branch's confidence, one float32, is copied to the host, and nothing else. So are the thresholds, once
    a run, from wherever they are. The virtual machine then takes two devices, the host last.
    """

    def __init__(self, target: tvm.target.Target | None = None):
        self.devices = [] if target is None or target.host is None else _virtual_devices(target)

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        if "main" in {var.name_hint for var in mod.get_global_vars()}:
            return mod
        known = {"vdevice": self.devices} if self.devices else {}
        routed = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs, global_infos={**mod.global_infos, **known})
        builder = relax.BlockBuilder(routed)
        names = {var.name_hint: var for var in builder.get().get_global_vars()}
        exits = sum(name.startswith("exit_") for name in names)
        host = self.devices[-1] if self.devices else None
        gates = [builder.add_func(_gate(index, exits, host), f"gate_{index:02d}") for index in range(exits)]
        builder.add_func(_Router(mod, names, gates, host).main(), "main")
        return relax.transform.Normalize()(builder.finalize())


def _virtual_devices(target: tvm.target.Target) -> list[relax.VDevice]:
    """The device and its host, in the order that the virtual machine is given them."""
    return [relax.VDevice(target), relax.VDevice(target.host)]


class _Router:
    """host: where the exits are decided, None for where the kernels run."""

    def __init__(
        self, mod: tvm.IRModule, names: dict[str, GlobalVar], gates: list[GlobalVar], host: relax.VDevice | None
    ):
        self.mod = mod
        self.names = names
        self.gates = gates
        self.host = host
        last = mod[names[segment_name(len(gates))]].ret_ty
        self.answer = relax.TupleType([last.fields[0], relax.TensorType((), "int32"), last.fields[1]])

    def main(self) -> relax.Function:
        x = relax.Var("x", self.mod[self.names[segment_name(0)]].params[0].ty)
        thresholds = relax.Var("thresholds", relax.TensorType((len(self.gates),), "float32"))
        params = [x, thresholds] if self.gates else [x]
        body = self._from(0, x, thresholds)
        return relax.Function(params, body, self.answer).with_attr("global_symbol", "main")

    def _from(self, index: int, entry: relax.Var, thresholds: relax.Var) -> relax.SeqExpr:
        """Everything behind exit ``index - 1``, given the tensor there."""
        bindings: list[relax.Binding] = []

        def bind(name: str, value: relax.Expr, ty: relax.Type) -> relax.Var:
            var = relax.Var(name, ty)
            bindings.append(relax.VarBinding(var, value))
            return var

        def call(name: str, argument: relax.Var) -> relax.Var:
            return bind(name, relax.Call(self.names[name], [argument]), self.mod[self.names[name]].ret_ty)

        def to_host(tensor: relax.Var) -> relax.Var:
            if self.host is None:
                return tensor
            ty = relax.TensorType(tensor.ty.shape, tensor.ty.dtype, self.host)
            return bind(f"{tensor.name}_on_host", op.to_vdevice(tensor, self.host), ty)

        def answer(pair: relax.Var) -> relax.Var:
            fields = [relax.TupleGetItem(pair, 0), relax.const(index, "int32"), relax.TupleGetItem(pair, 1)]
            return bind("answer", relax.Tuple(fields), self.answer)

        if index == 0 and self.gates:
            thresholds = to_host(thresholds)
        tensor = call(segment_name(index), entry)
        if index == len(self.gates):
            return _sequence(bindings, answer(tensor))

        pair = call(f"exit_{index:02d}", tensor)
        verdict = relax.TensorType((), "bool", self.host)
        confidence = to_host(bind("confidence", relax.TupleGetItem(pair, 1), pair.ty.fields[1]))
        fires = bind("fires", relax.call_tir(self.gates[index], [confidence, thresholds], out_ty=verdict), verdict)
        outer, bindings = bindings, []
        leave = _sequence(bindings, answer(pair))
        bindings = outer
        go_on = self._from(index + 1, tensor, thresholds)
        return _sequence(bindings, bind("routed", relax.If(fires, leave, go_on), self.answer))


def _sequence(bindings: list[relax.Binding], result: relax.Expr) -> relax.SeqExpr:
    return relax.SeqExpr([relax.BindingBlock(bindings)], result)


def _gate(index: int, exits: int, host: relax.VDevice | None) -> tvm.tirx.PrimFunc:
    """``confidence[0] >= thresholds[index]`` as a scalar bool; the host's function where there is one."""
    confidence = te.placeholder((1,), "float32", "confidence")
    thresholds = te.placeholder((exits,), "float32", "thresholds")
    fires = te.compute((), lambda: confidence[0] >= thresholds[index], "fires")
    gate = te.create_prim_func([confidence, thresholds, fires]).without_attr("global_symbol")
    return gate if host is None else gate.with_attr(HOST_FUNCTION, True)
