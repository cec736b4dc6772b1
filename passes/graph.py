"""Reading and copying the bindings of a Relax function whose body is one dataflow block."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

from tvm import relax

from hapi_tvm.errors import BuildError


def dataflow_bindings(function: relax.Function) -> list[relax.VarBinding]:
    """The bindings of ``function`` in order. Expects one dataflow block (what ``import_model`` leaves)."""
    blocks = function.body.blocks
    if len(blocks) != 1 or not isinstance(blocks[0], relax.DataflowBlock):
        raise BuildError(f"expected a function of one dataflow block, found {len(blocks)} blocks")
    return list(blocks[0].bindings)


def result_of(function: relax.Function) -> relax.Expr:
    """What ``function`` returns: the tuple where its output variable is bound to one, else the variable.

    Aliases between them are looked through.
    """
    values = {binding.var: binding.value for binding in dataflow_bindings(function)}
    result = function.body.body
    while isinstance(values.get(result), relax.Var | relax.Tuple):
        result = values[result]
    return result


def substitute(expr: relax.Expr, known: Mapping[relax.Var, relax.Expr]) -> relax.Expr:
    """``expr`` (a call, a tuple, a projection or a leaf) with its variables replaced."""
    if isinstance(expr, relax.Var):
        return known.get(expr, expr)
    if isinstance(expr, relax.Call):
        args = [substitute(arg, known) for arg in expr.args]
        return relax.Call(expr.op, args, expr.attrs, expr.ty_args)
    if isinstance(expr, relax.Tuple):
        return relax.Tuple([substitute(field, known) for field in expr.fields])
    if isinstance(expr, relax.TupleGetItem):
        return relax.TupleGetItem(substitute(expr.tuple_value, known), expr.index)
    return expr


def used_vars(expr: relax.Expr) -> list[relax.Var]:
    """The variables that ``expr`` reads directly."""
    if isinstance(expr, relax.Var):
        return [expr]
    if isinstance(expr, relax.Call):
        return [var for arg in expr.args for var in used_vars(arg)]
    if isinstance(expr, relax.Tuple):
        return [var for field in expr.fields for var in used_vars(field)]
    if isinstance(expr, relax.TupleGetItem):
        return used_vars(expr.tuple_value)
    return []


def needed_bindings(
    bindings: Iterable[relax.VarBinding], wanted: Iterable[relax.Var], given: Container[relax.Var]
) -> list[relax.VarBinding]:
    """The bindings that ``wanted`` depends on, in order, stopping at the variables in ``given``."""
    by_var = {binding.var: binding for binding in bindings}
    needed: set[relax.Var] = set()
    stack = list(wanted)
    while stack:
        var = stack.pop()
        if var in given or var in needed or var not in by_var:
            continue
        needed.add(var)
        stack.extend(used_vars(by_var[var].value))
    return [binding for var, binding in by_var.items() if var in needed]


def copy_bindings(
    builder: relax.BlockBuilder, bindings: Iterable[relax.VarBinding], known: dict[relax.Var, relax.Expr]
) -> None:
    """Emit ``bindings`` again under the names they had; ``known`` maps old variables to new ones."""
    for binding in bindings:
        value = substitute(binding.value, known)
        known[binding.var] = value if isinstance(value, relax.Var) else builder.emit(value, binding.var.name)


def inline(builder: relax.BlockBuilder, function: relax.Function, argument: relax.Expr) -> relax.Expr:
    """Emit the body of a function of one parameter; returns its result over the new variables."""
    known: dict[relax.Var, relax.Expr] = {function.params[0]: argument}
    result = result_of(function)
    bindings = dataflow_bindings(function)
    copy_bindings(builder, [b for b in bindings if not b.value.same_as(result)], known)
    return substitute(result, known)
