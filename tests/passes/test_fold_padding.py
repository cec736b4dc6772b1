"""FoldPadding: zeros around a feature map become the padding of the convolutions that read it."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm.relax import op

from hapi_tvm.passes.fold_padding import FoldPadding
from tests.passes.graphs import assert_equal, assert_same_numbers, constant, module, random

WEIGHT = random(4, 3, 3, 3)
BEHIND = [0, 0, 0, 0, 0, 1, 2, 3]  # before and behind, for each axis


def before(x, emit):
    padded = emit(op.nn.pad(x, BEHIND))
    return emit(op.nn.conv2d(padded, constant(WEIGHT), strides=2, padding=(1, 0, 0, 0)))


def after(x, emit):
    return emit(op.nn.conv2d(x, constant(WEIGHT), strides=2, padding=(1, 2, 1, 3)))


def test_zeros_become_the_padding_of_the_convolution():
    assert_equal(FoldPadding()(module(before)), module(after))


@pytest.mark.parametrize(
    "pad",
    [
        lambda x: op.nn.pad(x, BEHIND, pad_value=1.0),
        lambda x: op.nn.pad(x, BEHIND, pad_mode="reflect"),
        lambda x: op.nn.pad(x, [0, 0, 0, 1, 1, 1, 1, 1]),
    ],
    ids=["ones", "reflected", "over channels"],
)
def test_other_padding_stays(pad):
    def body(x, emit):
        padded = emit(pad(x))
        channels = int(padded.ty.shape[1])
        return emit(op.nn.conv2d(padded, constant(random(4, channels, 3, 3))))

    mod = module(body)
    assert_equal(FoldPadding()(mod), mod)


def test_padding_that_something_else_reads_stays_for_it():
    def both(x, emit):
        padded = emit(op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1]))
        convolved = emit(op.nn.conv2d(padded, constant(random(3, 3, 1, 1))))
        return emit(op.add(convolved, padded))

    def expected(x, emit):
        padded = emit(op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1]))
        convolved = emit(op.nn.conv2d(x, constant(random(3, 3, 1, 1)), padding=1))
        return emit(op.add(convolved, padded))

    assert_equal(FoldPadding()(module(both)), module(expected))


def test_input_is_unchanged():
    mod = module(before)
    FoldPadding()(mod)
    tvm.ir.assert_structural_equal(mod, module(before))


def test_twice_equals_once():
    once = FoldPadding()(module(before))
    tvm.ir.assert_structural_equal(FoldPadding()(once), once)


def test_numbers_stay():
    assert np.ptp(WEIGHT) > 0
    assert_same_numbers(module(before), FoldPadding()(module(before)))
