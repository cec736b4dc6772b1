"""Batch norms at inference are affine maps: fold them into the convolution before, in NumPy."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax

from hapi_tvm.passes.dataflow import Rewriter, array, operator, with_main


@tvm.transform.module_pass(opt_level=0, name="FoldBatchNorm")
class FoldBatchNorm:
    """Replace every batch norm over constants in ``main``.

    Behind a convolution (with or without a constant bias) that nothing else reads, the weights are scaled
    and one bias addition stays. Elsewhere it becomes a multiplication and an addition by constants.

    Runs after FoldWeights; expects ``main`` in A-normal form without control flow, convolutions as
    NCHW/OIHW. In float64 and once per weight: TVM's FoldConstant compiles every expression that it folds.
    """

    def transform_module(self, mod: tvm.IRModule, _context) -> tvm.IRModule:
        return with_main(mod, _Folder()(mod["main"]))


class _Folder(Rewriter):
    def rewrite(self, value: relax.Expr) -> relax.Expr:
        if not isinstance(value, relax.TupleGetItem) or value.index != 0:
            return value
        norm = self.definition(value.tuple_value)
        if operator(norm) != "relax.nn.batch_norm":
            return value
        affine = _affine(norm)
        if affine is None:
            return value
        scale, shift = affine
        folded = self._into_convolution(norm, scale, shift)
        return self._as_affine(norm, scale, shift) if folded is None else folded

    def _as_affine(self, norm: relax.Call, scale: np.ndarray, shift: np.ndarray) -> relax.Expr:
        data, shape = norm.args[0], [1] * norm.args[0].ty.ndim
        shape[int(norm.attrs.axis)] = -1
        scaled = self.emit(relax.op.multiply(data, _constant(scale.reshape(shape))))
        return relax.op.add(scaled, _constant(shift.reshape(shape)))

    def _into_convolution(self, norm: relax.Call, scale: np.ndarray, shift: np.ndarray) -> relax.Expr | None:
        """None where the data is not a convolution's output read by this norm only."""
        data, bias = norm.args[0], 0.0
        value = self.definition(data)
        if operator(value) == "relax.add":
            conv, constant = _constant_last(value)
            bias = _per_channel(constant, len(scale))
            if bias is None or self.uses(data) != 1:
                return None
            data, value = conv, self.definition(conv)
        if operator(value) != "relax.nn.conv2d" or not isinstance(data, relax.Var) or self.uses(data) != 1:
            return None
        weight, attrs = array(value.args[1]), value.attrs
        if weight is None or int(norm.attrs.axis) != 1:
            return None
        if (str(attrs.data_layout), str(attrs.kernel_layout)) != ("NCHW", "OIHW"):
            return None
        scaled = _constant(weight * scale[:, None, None, None])
        convolved = self.emit(relax.Call(value.op, [value.args[0], scaled], attrs, value.ty_args))
        return relax.op.add(convolved, _constant((bias * scale + shift).reshape(1, -1, 1, 1)))


def _affine(norm: relax.Call) -> tuple[np.ndarray, np.ndarray] | None:
    """scale, shift: float64 [C] with ``norm(x) = x * scale + shift``; None if a parameter is computed."""
    parameters = [array(arg) for arg in norm.args[1:5]]
    if any(parameter is None for parameter in parameters) or norm.attrs.training:
        return None
    gamma, beta, mean, variance = (parameter.astype(np.float64) for parameter in parameters)
    scale = 1.0 / np.sqrt(variance + float(norm.attrs.epsilon))
    if norm.attrs.scale:
        scale = scale * gamma
    return scale, (beta if norm.attrs.center else 0.0) - mean * scale


def _constant_last(add: relax.Call) -> tuple[relax.Expr, relax.Expr]:
    left, right = add.args
    return (right, left) if array(left) is not None else (left, right)


def _per_channel(expr: relax.Expr, channels: int) -> np.ndarray | None:
    """float64 [channels], where ``expr`` is a constant [C, 1, 1] or [1, C, 1, 1]."""
    value = array(expr)
    if value is None or value.shape not in ((channels, 1, 1), (1, channels, 1, 1)):
        return None
    return value.reshape(channels).astype(np.float64)


def _constant(value: np.ndarray) -> relax.Expr:
    return relax.const(value.astype(np.float32))
