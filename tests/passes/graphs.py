"""Small Relax functions for the tests of the import passes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import tvm
from tvm import relax

from hapi_tvm.reference import TorchReference

Emit = Callable[[relax.Expr], relax.Var]
Body = Callable[[relax.Var, Emit], relax.Expr]


def constant(value) -> relax.Expr:
    return relax.const(np.asarray(value, np.float32))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    """float32, positive, so that it can stand for a variance."""
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def module(body: Body, shape: tuple[int, ...] = (1, 3, 6, 6)) -> tvm.IRModule:
    """``main(x)`` of one dataflow block; ``body`` emits its bindings and returns the result."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(body(x, builder.emit))
        builder.emit_func_output(output)
    return builder.finalize()


def without_aliases(mod: tvm.IRModule) -> tvm.IRModule:
    """``gv = lv`` removed, so that modules built in different ways compare equal."""
    return relax.transform.CanonicalizeBindings()(mod)


def assert_equal(got: tvm.IRModule, expected: tvm.IRModule, rtol: float = 0.0) -> None:
    """Same structure and, with ``rtol``, constants that agree up to rounding."""
    got, expected = (without_aliases(mod)["main"] for mod in (got, expected))
    if rtol:
        tvm.ir.assert_structural_equal(_zeroed(got), _zeroed(expected), map_free_vars=True)
        for mine, theirs in zip(constants(got), constants(expected), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=rtol)
    else:
        tvm.ir.assert_structural_equal(got, expected, map_free_vars=True)


def constants(function: relax.Function) -> list[np.ndarray]:
    found = []

    def collect(expr):
        if isinstance(expr, tvm.ir.GenericConst):
            found.append(expr.value.numpy())

    relax.analysis.post_order_visit(function, collect)
    return found


def _zeroed(function: relax.Function) -> relax.Function:
    @relax.expr_functor.mutator
    class Zero(relax.PyExprMutator):
        def visit_generic_const_(self, op):
            return relax.const(np.zeros_like(op.value.numpy()))

    return Zero().visit_expr(function)


def assert_same_numbers(before: tvm.IRModule, after: tvm.IRModule, rtol: float = 1e-5) -> None:
    shape = [int(extent) for extent in before["main"].params[0].ty.shape]
    x = torch.randn(4, *shape[1:], generator=torch.Generator().manual_seed(0))
    left, right = (TorchReference(mod).run(x)["result"] for mod in (before, after))
    torch.testing.assert_close(left, right, rtol=rtol, atol=rtol * float(left.abs().max()))
