"""Rebuild a Relax function binding by binding: what the import passes share.

They run on functions in A-normal form whose bindings stand in topological order, without control flow;
then a rewrite is one loop, and a pass overrides the single method that says what replaces a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import tvm
from tvm import relax

from hapi_tvm.errors import ModelError
from hapi_tvm.passes.graph import substitute, used_vars


def bindings(function: relax.Function) -> Iterator[relax.VarBinding]:
    """The bindings in order. Raises ModelError where a value is not a plain binding."""
    for block in function.body.blocks:
        for binding in block.bindings:
            if not isinstance(binding, relax.VarBinding) or isinstance(binding.value, relax.If):
                raise ModelError(
                    f"{binding.var.name} is control flow or a shape known at run time only; "
                    "a backbone must be one static dataflow graph: export the model without branches"
                )
            yield binding


def operator(value: relax.Expr) -> str:
    """``relax.nn.conv2d`` and the like; the empty string for anything that calls no operator."""
    return value.op.name if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) else ""


def array(expr: relax.Expr):
    """The NumPy value of a constant, else None."""
    return expr.value.numpy() if isinstance(expr, tvm.ir.GenericConst) else None


def input_dependent(function: relax.Function) -> set[relax.Var]:
    """The parameters and every variable computed from one."""
    known = set(function.params)
    for binding in bindings(function):
        if any(var in known for var in used_vars(binding.value)):
            known.add(binding.var)
    return known


def with_main(mod: tvm.IRModule, function: relax.Function) -> tvm.IRModule:
    """A new module with ``function`` as ``main``; ``mod`` stays as it is."""
    functions = {name: mod[name] for name in mod.get_global_vars()}
    functions[mod.get_global_var("main")] = function
    return tvm.IRModule(functions, attrs=mod.attrs)


class Rewriter:
    """Copies a function. Override ``rewrite`` to replace values on the way."""

    def rewrite(self, value: relax.Expr) -> relax.Expr:
        """value: an original value over the new variables. Returns what is bound in its place."""
        return value

    def name(self, var: relax.Var, value: relax.Expr) -> str:
        return var.name

    @property
    def bound(self) -> relax.Var:
        """The original variable whose value is being rewritten."""
        return self._bound

    def emit(self, value: relax.Expr, name: str = "") -> relax.Var:
        """Bind an intermediate value that the original function did not have."""
        var = self._builder.emit(value, name)
        self._value[var], self._uses[var] = value, 1
        return var

    def definition(self, var: relax.Expr) -> relax.Expr | None:
        """The value bound to a new variable; None for parameters and constants."""
        return self._value.get(var) if isinstance(var, relax.Var) else None

    def uses(self, var: relax.Var) -> int:
        """How often the original function reads what this new variable stands for."""
        return self._uses[var]

    def parameters(self, function: relax.Function) -> list[relax.Var]:
        return list(function.params)

    def result(self, value: relax.Expr) -> relax.Expr:
        """The function's new result, over the new variables."""
        return value

    def __call__(self, function: relax.Function) -> relax.Function:
        self._builder = relax.BlockBuilder()
        self._value: dict[relax.Var, relax.Expr] = {}
        self._uses: dict[relax.Var, int] = {}
        self._new: dict[relax.Var, relax.Expr] = {}
        read = Counter(var for binding in bindings(function) for var in used_vars(binding.value))
        read.update(used_vars(function.body.body))
        parameters = self.parameters(function)
        for old, new in zip(function.params, parameters, strict=True):
            self._new[old], self._uses[new] = new, read[old]
        with self._builder.function("main", parameters):
            with self._builder.dataflow():
                for binding in bindings(function):
                    self._copy(binding, read[binding.var])
                value = self.result(substitute(function.body.body, self._new))
                output = self._builder.emit_output(value, "result")
            self._builder.emit_func_output(output)
        rebuilt = self._builder.finalize()["main"].without_attr("global_symbol")
        cleaned = relax.analysis.remove_all_unused(rebuilt)
        return cleaned.with_attrs(dict(function.attrs)) if function.attrs else cleaned

    def _copy(self, binding: relax.VarBinding, read: int) -> None:
        self._bound = binding.var
        value = self.rewrite(substitute(binding.value, self._new))
        if isinstance(value, relax.Var | tvm.ir.GenericConst):
            self._new[binding.var] = value
            return
        var = self._builder.emit(value, self.name(binding.var, value))
        self._new[binding.var], self._value[var], self._uses[var] = var, value, read
