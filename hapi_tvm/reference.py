"""Run a Relax function in torch: features for training, calibration, and the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import tvm
from tvm import relax

from hapi_tvm.errors import ModelError
from hapi_tvm.passes.dataflow import array, bindings, input_dependent, operator
from hapi_tvm.passes.flops import REDUCTIONS
from hapi_tvm.passes.graph import substitute, used_vars
from hapi_tvm.reference_ops import RULES, Tensors

RESHAPES = frozenset({"relax.reshape", "relax.squeeze", "relax.expand_dims"})
RESULT = "result"


class TorchReference:
    """An interpreter of one high-level Relax function (before legalisation) that was traced at batch 1.

    It runs any batch size where the leading 1 of every shape can only be the batch; elsewhere it runs sample
    by sample, slower and just as right. An operator without a rule in torch is compiled by TVM, alone.
    Constants are converted once; ``channels_last`` keeps feature maps and weights in that memory format.
    """

    def __init__(self, module: tvm.IRModule, function: str = "main", *, channels_last: bool = False):
        self._module, self._function = module, module[function]
        self._bindings = list(bindings(self._function))
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._constants: dict[tvm.ir.GenericConst, torch.Tensor] = {}
        self._compiled: dict[relax.Var, Callable[..., Tensors]] = {}
        self._names = {binding.var.name: binding.var for binding in self._bindings}
        self._batched = _keeps_batch(self._function)
        self._last_use = {
            var: index for index, binding in enumerate(self._bindings) for var in used_vars(binding.value)
        }

    @torch.no_grad()
    def run(self, x: torch.Tensor, wanted: Sequence[str] = ()) -> dict[str, Tensors]:
        """Values of the named variables, and the function's result under ``"result"``.

        x: float32 [B, C, H, W]. Every value has the batch B in place of its leading 1; a tuple stays a tuple.
        Tensors are freed after their last reader. Raises ModelError for an unknown name or another shape.
        """
        unknown = [name for name in wanted if name not in self._names]
        if unknown:
            some = ", ".join(list(self._names)[:8])
            raise ModelError(f"the function has no tensor {unknown[0]!r}; it has {some}, ...")
        expected = [int(extent) for extent in self._function.params[0].ty.shape][1:]
        if list(x.shape[1:]) != expected:
            raise ModelError(f"the input has shape {list(x.shape)}; the model takes [B, {str(expected)[1:]}")
        if self._batched or len(x) == 1:
            return self._run(x, wanted)
        samples = [self._run(sample, wanted) for sample in x.split(1)]
        return {name: _stacked([sample[name] for sample in samples]) for name in samples[0]}

    def _run(self, x: torch.Tensor, wanted: Sequence[str]) -> dict[str, Tensors]:
        values: dict[relax.Var, Tensors] = {}
        values[self._function.params[0]] = x.contiguous(memory_format=self._format)
        kept = {self._names[name] for name in wanted} | set(used_vars(self._function.body.body))
        for index, binding in enumerate(self._bindings):
            values[binding.var] = self._value(binding, values)
            for var in set(used_vars(binding.value)):
                if self._last_use[var] == index and var not in kept:
                    del values[var]
        named = {name: values[self._names[name]] for name in wanted}
        return named | {RESULT: self._leaf(self._function.body.body, values)}

    def _value(self, binding: relax.VarBinding, values: dict[relax.Var, Tensors]) -> Tensors:
        call = binding.value
        if not isinstance(call, relax.Call):
            return self._leaf(call, values)
        rule = RULES.get(operator(call))
        if rule is not None:
            return rule(call, *self._operands(call.args, values))
        if binding.var not in self._compiled:
            self._compiled[binding.var] = _compile(self._module, call)
        return self._compiled[binding.var](*(values[var] for var in _distinct(used_vars(call))))

    def _operands(self, args: Sequence[relax.Expr], values: dict[relax.Var, Tensors]) -> list[torch.Tensor]:
        """The tensors among ``args``, tuples flattened."""
        found: list[torch.Tensor] = []
        for arg in args:
            if isinstance(arg, relax.Tuple):
                found += self._operands(arg.fields, values)
            elif isinstance(arg, relax.Var | tvm.ir.GenericConst):
                leaf = self._leaf(arg, values)
                found += leaf if isinstance(leaf, tuple) else [leaf]
        return found

    def _leaf(self, expr: relax.Expr, values: dict[relax.Var, Tensors]) -> Tensors:
        if isinstance(expr, relax.Tuple):
            return tuple(self._leaf(field, values) for field in expr.fields)
        if isinstance(expr, relax.TupleGetItem):
            return self._leaf(expr.tuple_value, values)[expr.index]
        if isinstance(expr, relax.Var):
            return values[expr]
        if expr not in self._constants:
            tensor = torch.from_numpy(array(expr).copy())
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=self._format)
            self._constants[expr] = tensor
        return self._constants[expr]


def logits_of(module: tvm.IRModule, image: np.ndarray) -> np.ndarray:
    """What a backbone's ``main`` makes of one image, float32 [1, C, H, W]: its logits [1, K]."""
    return TorchReference(module).run(torch.from_numpy(image))[RESULT].numpy()


def _stacked(parts: Sequence[Tensors]) -> Tensors:
    if isinstance(parts[0], tuple):
        return tuple(_stacked(fields) for fields in zip(*parts, strict=True))
    return torch.cat(list(parts))


def _distinct(variables: Sequence[relax.Var]) -> list[relax.Var]:
    return list(dict.fromkeys(variables))


def _keeps_batch(function: relax.Function) -> bool:
    """Whether axis 0 of every value computed from the input can only be the batch."""
    dependent = input_dependent(function)
    return all(
        binding.var not in dependent
        or (_leads_with_one(binding.var.ty) and _leaves_axis_zero(binding.value, dependent))
        for binding in bindings(function)
    )


def _leads_with_one(ty: tvm.ir.Type) -> bool:
    if isinstance(ty, relax.TupleType):
        return all(_leads_with_one(field) for field in ty.fields)
    return isinstance(ty, relax.TensorType) and ty.ndim >= 1 and int(ty.shape[0]) == 1


def _leaves_axis_zero(value: relax.Expr, dependent: set[relax.Var]) -> bool:
    """False where ``value`` moves, joins or reduces axis 0, or could line it up with another axis."""
    name = operator(value)
    if name not in RULES or name in RESHAPES:
        return True  # compiled for one sample, or row-major order keeps the leading axis
    data = [var for var in used_vars(value) if var in dependent]
    if name == "relax.permute_dims":
        return value.attrs.axes is not None and int(value.attrs.axes[0]) == 0
    if name == "relax.matmul":
        return data == [value.args[0]] or all(var.ty.ndim > 2 for var in data)
    axes = getattr(value.attrs, "axis", 1)
    axes = range(data[0].ty.ndim) if axes is None else [axes] if isinstance(axes, int) else axes
    if any(int(axis) % data[0].ty.ndim == 0 for axis in axes):
        return False
    if name == "relax.concat":
        return len(data) == len(value.args[0].fields)
    return name in REDUCTIONS or all(var.ty.ndim == _rank(value.ty) for var in data)


def _rank(ty: tvm.ir.Type) -> int:
    return ty.fields[0].ndim if isinstance(ty, relax.TupleType) else ty.ndim


def _compile(module: tvm.IRModule, call: relax.Call) -> Callable[..., Tensors]:
    """``call`` compiled by TVM for one sample; the returned function runs a batch sample by sample."""
    parameters = _distinct(used_vars(call))
    builder = relax.BlockBuilder()
    fresh = [relax.Var(var.name, var.ty) for var in parameters]
    with builder.function("main", fresh):
        with builder.dataflow():
            known = dict(zip(parameters, fresh, strict=True))
            output = builder.emit_output(builder.emit(substitute(call, known)))
        builder.emit_func_output(output)
    functions = {name: f for name, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc)}
    functions[tvm.ir.GlobalVar("main")] = builder.finalize()["main"]
    lowered = relax.transform.LegalizeOps()(tvm.IRModule(functions))
    machine = relax.VirtualMachine(tvm.compile(lowered, tvm.target.Target("llvm")), tvm.cpu())

    def run(*tensors: torch.Tensor) -> Tensors:
        batch = max(len(tensor) for tensor in tensors)
        samples = []
        for index in range(batch):
            rows = [tensor[index : index + 1] if len(tensor) == batch else tensor for tensor in tensors]
            samples.append(_to_torch(machine["main"](*(tvm.runtime.tensor(row.numpy()) for row in rows))))
        return _stacked(samples)

    return run


def _to_torch(value: object) -> Tensors:
    if isinstance(value, tvm.runtime.Tensor):
        return torch.from_numpy(value.numpy())
    return tuple(_to_torch(field) for field in value)
