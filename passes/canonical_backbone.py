"""The signature that all later stages rely on."""

from __future__ import annotations

from collections import Counter

import tvm
from tvm import relax

from hapi_tvm.passes.dataflow import Rewriter, operator, with_main

_TIDY = tvm.transform.Sequential(
    [relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination(["main"])]
)
PROBABILITIES = ("relax.nn.softmax", "relax.nn.log_softmax")


@tvm.transform.module_pass(opt_level=0, name="CanonicalBackbone")
class CanonicalBackbone:
    """Make ``main(x) -> logits``: one bare tensor, unique names, nothing unused.

    A tuple of one is unpacked; a softmax or log-softmax at the end goes, since the runtime adds its own.
    Every variable is called after its operator with a running number (``relu_7``), so that a name says what
    it is and the same model gets the same names in every process.

    Last of the import passes; expects ``main`` in A-normal form without control flow, with one parameter.
    """

    def transform_module(self, mod: tvm.IRModule, _context) -> tvm.IRModule:
        # Dead code goes first too: it must not use up numbers.
        function = _Canonical()(_TIDY(mod)["main"]).without_attr("num_input")
        return _TIDY(with_main(mod, function))


class _Canonical(Rewriter):
    def __init__(self):
        self._named = Counter()

    def parameters(self, function: relax.Function) -> list[relax.Var]:
        (parameter,) = function.params
        return [relax.Var("x", parameter.ty)]

    def rewrite(self, value: relax.Expr) -> relax.Expr:
        if isinstance(value, relax.TupleGetItem):
            definition = self.definition(value.tuple_value)
            return definition.fields[value.index] if isinstance(definition, relax.Tuple) else value
        return value

    def name(self, var: relax.Var, value: relax.Expr) -> str:
        kind = operator(value).rpartition(".")[2] or "value"
        self._named[kind] += 1
        return f"{kind}_{self._named[kind]}"

    def result(self, value: relax.Expr) -> relax.Expr:
        while (inner := self._inner(value)) is not None:
            value = inner
        return value

    def _inner(self, value: relax.Expr) -> relax.Expr | None:
        if isinstance(value, relax.Tuple) and len(value.fields) == 1:
            return value.fields[0]
        definition = self.definition(value)
        if isinstance(definition, relax.Tuple) and len(definition.fields) == 1:
            return definition.fields[0]
        if operator(definition) in PROBABILITIES:
            return definition.args[0]
        return None
