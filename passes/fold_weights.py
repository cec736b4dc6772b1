"""Operators applied to weights only: computed once, in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from hapi_tvm.passes.dataflow import Rewriter, array, operator, with_main


@tvm.transform.module_pass(opt_level=0, name="FoldWeights")
class FoldWeights:
    """Replace every call in ``main`` whose operands are all constants, and whose operator is listed here.

    First of the import passes. Expects ``main`` in A-normal form without control flow. The list covers what
    the frontends emit around weights; TVM's FoldConstant covers everything, and compiles each expression:
    about 5 s for a ResNet-56 on TVM 0.27, against milliseconds here.
    """

    def transform_module(self, mod: tvm.IRModule, _context) -> tvm.IRModule:
        return with_main(mod, _Folder()(mod["main"]))


class _Folder(Rewriter):
    def rewrite(self, value: relax.Expr) -> relax.Expr:
        fold = _FOLDS.get(operator(value))
        if fold is None:
            return value
        tensors = [array(arg) for arg in value.args if not isinstance(arg, relax.ShapeExpr)]
        if any(tensor is None for tensor in tensors):
            return value
        return relax.const(np.asarray(fold(value, *tensors), order="C"))


def _shape(call: relax.Call) -> list[int]:
    return [int(extent) for extent in call.args[1].values]


def _permute(call: relax.Call, tensor: np.ndarray) -> np.ndarray:
    axes = call.attrs.axes
    return tensor.transpose(None if axes is None else [int(axis) for axis in axes])


def _squeeze(call: relax.Call, tensor: np.ndarray) -> np.ndarray:
    axes = call.attrs.axis
    return tensor.squeeze(None if axes is None else tuple(int(axis) for axis in axes))


def _expand(call: relax.Call, tensor: np.ndarray) -> np.ndarray:
    return np.expand_dims(tensor, tuple(int(axis) for axis in call.attrs.axis))


def _same_type(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """NumPy promotes scalars and shapes where Relax keeps the type."""

    def fold(call: relax.Call, *tensors: np.ndarray) -> np.ndarray:
        return np.asarray(function(*tensors)).astype(tensors[-1].dtype)

    return fold


_FOLDS: dict[str, Callable[..., np.ndarray]] = {
    "relax.reshape": lambda call, tensor: tensor.reshape(_shape(call)),
    "relax.broadcast_to": lambda call, tensor: np.broadcast_to(tensor, _shape(call)),
    "relax.permute_dims": _permute,
    "relax.squeeze": _squeeze,
    "relax.expand_dims": _expand,
    "relax.astype": lambda call, tensor: tensor.astype(str(call.attrs.dtype)),
    "relax.isnan": lambda call, tensor: np.isnan(tensor),
    "relax.where": _same_type(np.where),
    "relax.add": _same_type(np.add),
    "relax.subtract": _same_type(np.subtract),
    "relax.multiply": _same_type(np.multiply),
    "relax.divide": _same_type(np.divide),
    "relax.power": _same_type(np.power),
    "relax.sqrt": _same_type(np.sqrt),
    "relax.negative": _same_type(np.negative),
}
