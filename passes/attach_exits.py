"""Attach exit branches to the candidate tensors, as further outputs of ``main``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tvm
from tvm import relax
from tvm.relax import op

from hapi_tvm.errors import BuildError
from hapi_tvm.passes.graph import dataflow_bindings, substitute
from hapi_tvm.records import Option

BranchWeights = Mapping[str, np.ndarray]


def cut_name(candidate: int) -> str:
    """The name that a candidate's tensor bears from here on."""
    return f"cut_{candidate:02d}"


@tvm.transform.module_pass(opt_level=0, name="AttachExits")
class AttachExits:
    """``main(x) -> logits`` becomes ``main(x) -> (p_0, c_0, p_1, c_1, ..., p, c)``.

    One pair for each option, in order, and one for the backbone: ``p`` [1, K] are probabilities, ``c``
    [1] is the confidence, the largest of them. Candidate tensors are renamed ``cut_00``, ``cut_01``, ...
    Runs after FoldBatchNorm and before any layout changes; expects one dataflow block, NCHW tensors and
    a bare tensor as result. A module whose ``main`` already returns a tuple is returned as it is.

    tensors: the variable of each candidate. weights: for each option, ``weight`` [2C, K] and ``bias``
    [K] over the pooled mean and maximum; kind "conv" has ``conv_weight`` [D, C, 3, 3] and ``conv_bias``
    [D] before them. Temperatures are already divided into ``weight`` and ``bias``.
    """

    def __init__(self, tensors: Sequence[str], weights: Mapping[Option, BranchWeights]):
        self.names = {tensor: cut_name(index) for index, tensor in enumerate(tensors)}
        self.weights = weights

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        main = mod["main"]
        if isinstance(main.ret_ty, relax.TupleType):
            return mod
        self._check(main)
        kept = {var: f for var, f in mod.functions_items() if var.name_hint != "main"}
        builder = relax.BlockBuilder(tvm.IRModule(kept, attrs=mod.attrs))
        x = relax.Var(main.params[0].name, main.params[0].ty)
        known: dict[relax.Var, relax.Expr] = {main.params[0]: x}
        cuts: dict[str, relax.Var] = {}
        with builder.function("main", [x]):
            with builder.dataflow():
                for binding in dataflow_bindings(main):
                    name = self.names.get(binding.var.name, binding.var.name)
                    known[binding.var] = builder.emit(substitute(binding.value, known), name)
                    cuts[name] = known[binding.var]
                outputs: list[relax.Expr] = []
                for option, weights in self.weights.items():
                    cut = cuts[cut_name(option.candidate)]
                    outputs += _answer(builder, _BRANCHES[option.kind](builder, cut, weights))
                outputs += _answer(builder, known[main.body.body])
                result = builder.emit_output(relax.Tuple(outputs))
            builder.emit_func_output(result)
        return builder.finalize()

    def _check(self, main: relax.Function) -> None:
        bound = {binding.var.name for binding in dataflow_bindings(main)}
        missing = [tensor for tensor in self.names if tensor not in bound]
        if missing:
            raise BuildError(
                f"AttachExits: main binds no {', '.join(missing)}; the exit graph belongs to another backbone"
            )
        outside = sorted({option.candidate for option in self.weights} - set(range(len(self.names))))
        if outside:
            raise BuildError(
                f"AttachExits: there are weights for candidates {outside}, and tensors for {len(self.names)}"
            )


def _answer(builder: relax.BlockBuilder, logits: relax.Expr) -> list[relax.Expr]:
    probabilities = builder.emit(op.nn.softmax(logits, axis=-1))
    return [probabilities, builder.emit(op.max(probabilities, axis=[1]))]


def _linear(builder: relax.BlockBuilder, x: relax.Expr, weights: BranchWeights) -> relax.Expr:
    """Global mean and maximum of each channel, one dense layer."""
    channels = weights["weight"].shape[0] // 2
    pooled = [
        builder.emit(op.reshape(builder.emit(reduce(x, axis=[2, 3], keepdims=True)), (1, channels)))
        for reduce in (op.mean, op.max)
    ]
    product = builder.emit(
        op.matmul(builder.emit(op.concat(pooled, axis=1)), relax.const(weights["weight"], "float32"))
    )
    return builder.emit(op.add(product, relax.const(weights["bias"], "float32")))


def _conv(builder: relax.BlockBuilder, x: relax.Expr, weights: BranchWeights) -> relax.Expr:
    """A 3x3 convolution of stride 2 with ReLU, then the linear branch."""
    convolved = builder.emit(
        op.nn.conv2d(x, relax.const(weights["conv_weight"], "float32"), strides=2, padding=1)
    )
    bias = relax.const(weights["conv_bias"].reshape(1, -1, 1, 1), "float32")
    return _linear(builder, builder.emit(op.nn.relu(builder.emit(op.add(convolved, bias)))), weights)


_BRANCHES = {"linear": _linear, "conv": _conv}
