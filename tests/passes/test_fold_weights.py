from __future__ import annotations

import numpy as np
import tvm
from tvm.relax import op

from hapi_tvm.passes.fold_weights import FoldWeights
from tests.passes.graphs import assert_equal, assert_same_numbers, constant, module, random

WEIGHT, BIAS = random(4, 5), random(4)


def before(x, emit):
    weight = emit(op.permute_dims(constant(WEIGHT)))
    bias = emit(op.reshape(constant(BIAS), (1, 4)))
    doubled = emit(op.multiply(bias, constant(2.0)))
    flat = emit(op.reshape(x, (1, 5)))
    return emit(op.add(emit(op.matmul(flat, weight)), doubled))


def after(x, emit):
    flat = emit(op.reshape(x, (1, 5)))
    return emit(op.add(emit(op.matmul(flat, constant(WEIGHT.T))), constant(2 * BIAS.reshape(1, 4))))


def source() -> tvm.IRModule:
    return module(before, shape=(1, 5, 1, 1))


def test_calls_over_constants_become_constants():
    assert_equal(FoldWeights()(source()), module(after, shape=(1, 5, 1, 1)))


def test_scalars_stay_scalars():
    def bounded(x, emit):
        bound = constant(np.nan)
        unbounded = emit(op.where(emit(op.isnan(bound)), constant(-np.inf), bound))
        return emit(op.maximum(x, unbounded))

    def expected(x, emit):
        return emit(op.maximum(x, constant(-np.inf)))

    assert_equal(FoldWeights()(module(bounded)), module(expected))


def test_input_is_unchanged():
    mod = source()
    FoldWeights()(mod)
    tvm.ir.assert_structural_equal(mod, source())


def test_twice_equals_once():
    once = FoldWeights()(source())
    tvm.ir.assert_structural_equal(FoldWeights()(once), once)


def test_numbers_stay():
    assert_same_numbers(FoldWeights()(source()), module(after, shape=(1, 5, 1, 1)))
