from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax import op

from hapi_tvm.passes.dataflow import bindings, operator
from hapi_tvm.passes.fold_batch_norm import FoldBatchNorm
from tests.passes.graphs import assert_equal, assert_same_numbers, constant, module, random

CHANNELS, EPSILON = 4, 1e-3
WEIGHT = random(CHANNELS, 3, 3, 3, seed=1)
BIAS = random(CHANNELS, seed=2)
GAMMA, BETA, MEAN, VARIANCE = (random(CHANNELS, seed=seed) for seed in (3, 4, 5, 6))
SCALE = (GAMMA / np.sqrt(VARIANCE.astype(np.float64) + EPSILON)).astype(np.float32)


def per_channel(values: np.ndarray) -> relax.Expr:
    return constant(values.reshape(1, -1, 1, 1))


def norm(emit, data, gamma=GAMMA, beta=BETA, mean=MEAN, variance=VARIANCE, **options) -> relax.Expr:
    parameters = [constant(values) for values in (gamma, beta, mean, variance)]
    normed = emit(op.nn.batch_norm(data, *parameters, axis=1, epsilon=EPSILON, training=False, **options))
    return emit(relax.TupleGetItem(normed, 0))


def behind_convolution(x, emit):
    return emit(op.nn.relu(norm(emit, emit(op.nn.conv2d(x, constant(WEIGHT), padding=1)))))


def behind_bias(x, emit):
    convolved = emit(op.nn.conv2d(x, constant(WEIGHT), padding=1))
    return norm(emit, emit(op.add(convolved, per_channel(BIAS))))


def behind_bias_on_the_left(x, emit):
    convolved = emit(op.nn.conv2d(x, constant(WEIGHT), padding=1))
    return norm(emit, emit(op.add(per_channel(BIAS), convolved)))


def behind_grouped(x, emit):
    weight = random(6, 1, 3, 3)
    parameters = {name: random(6, seed=i) for i, name in enumerate(("gamma", "beta", "mean", "variance"))}
    return norm(emit, emit(op.nn.conv2d(x, constant(weight), groups=3)), **parameters)


def without_scale_and_center(x, emit):
    return norm(emit, emit(op.nn.conv2d(x, constant(WEIGHT))), center=False, scale=False)


def behind_shared_convolution(x, emit):
    convolved = emit(op.nn.conv2d(x, constant(WEIGHT), padding=1))
    return emit(op.add(norm(emit, convolved), convolved))


def behind_shared_bias(x, emit):
    biased = emit(op.add(emit(op.nn.conv2d(x, constant(WEIGHT))), per_channel(BIAS)))
    return emit(op.multiply(norm(emit, biased), biased))


def before_activation(x, emit):
    convolved = emit(op.nn.conv2d(x, constant(WEIGHT)))
    return norm(emit, emit(op.nn.relu(convolved)))


def twice(x, emit):
    return norm(emit, norm(emit, emit(op.nn.conv2d(x, constant(WEIGHT)))))


SHAPES = [
    behind_convolution,
    behind_bias,
    behind_bias_on_the_left,
    behind_grouped,
    without_scale_and_center,
    behind_shared_convolution,
    behind_shared_bias,
    before_activation,
    twice,
]


def test_behind_a_convolution_the_weights_are_scaled():
    def expected(x, emit):
        weight = constant(WEIGHT * SCALE[:, None, None, None])
        shifted = emit(op.add(emit(op.nn.conv2d(x, weight, padding=1)), per_channel(BETA - MEAN * SCALE)))
        return emit(op.nn.relu(shifted))

    assert_equal(FoldBatchNorm()(module(behind_convolution)), module(expected), rtol=1e-5)


@pytest.mark.parametrize("before", [behind_bias, behind_bias_on_the_left])
def test_a_bias_is_scaled_and_stays_one_addition(before):
    def expected(x, emit):
        weight = constant(WEIGHT * SCALE[:, None, None, None])
        bias = per_channel((BIAS - MEAN) * SCALE + BETA)
        return emit(op.add(emit(op.nn.conv2d(x, weight, padding=1)), bias))

    assert_equal(FoldBatchNorm()(module(before)), module(expected), rtol=1e-5)


def test_elsewhere_it_is_a_multiplication_and_an_addition():
    def expected(x, emit):
        active = emit(op.nn.relu(emit(op.nn.conv2d(x, constant(WEIGHT)))))
        return emit(op.add(emit(op.multiply(active, per_channel(SCALE))), per_channel(BETA - MEAN * SCALE)))

    assert_equal(FoldBatchNorm()(module(before_activation)), module(expected), rtol=1e-5)


@pytest.mark.parametrize("body", SHAPES)
def test_none_remains_and_the_input_is_unchanged(body):
    before = module(body)
    after = FoldBatchNorm()(before)
    assert "relax.nn.batch_norm" not in {operator(binding.value) for binding in bindings(after["main"])}
    tvm.ir.assert_structural_equal(before, module(body))


@pytest.mark.parametrize("body", SHAPES)
def test_twice_equals_once(body):
    once = FoldBatchNorm()(module(body))
    tvm.ir.assert_structural_equal(FoldBatchNorm()(once), once)


@pytest.mark.parametrize("body", SHAPES)
def test_numbers_stay(body):
    before = module(body)
    assert_same_numbers(before, FoldBatchNorm()(before))


def test_a_norm_over_a_matrix_product():
    def body(x, emit):
        return norm(emit, emit(op.matmul(x, constant(random(5, CHANNELS)))))

    before = module(body, shape=(1, 5))
    assert_same_numbers(before, FoldBatchNorm()(before))
