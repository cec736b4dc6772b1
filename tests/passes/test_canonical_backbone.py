from __future__ import annotations

import pytest
import tvm
from tvm import relax
from tvm.relax import op

from hapi_tvm.passes.canonical_backbone import CanonicalBackbone
from hapi_tvm.passes.dataflow import bindings
from tests.passes.graphs import assert_equal, assert_same_numbers, module


def logits(x, emit):
    return emit(op.mean(emit(op.nn.relu(emit(op.nn.relu(x)))), axis=[2, 3]))


def with_tuple(x, emit):
    return relax.Tuple([logits(x, emit)])


def with_softmax(x, emit):
    return emit(op.nn.softmax(logits(x, emit), axis=-1))


def with_log_softmax_in_tuple(x, emit):
    return relax.Tuple([emit(op.nn.log_softmax(logits(x, emit), axis=1))])


def with_dead_code(x, emit):
    emit(op.nn.relu(emit(op.negative(x))))
    return logits(x, emit)


def with_a_tuple_inside(x, emit):
    pair = emit(relax.Tuple([x, emit(op.zeros_like(x))]))
    return logits(emit(relax.TupleGetItem(pair, 0)), emit)


BODIES = [logits, with_tuple, with_softmax, with_log_softmax_in_tuple, with_dead_code, with_a_tuple_inside]


@pytest.mark.parametrize("body", BODIES)
def test_result_is_the_bare_logits(body):
    assert_equal(CanonicalBackbone()(module(body)), module(logits))


@pytest.mark.parametrize("body", BODIES)
def test_names_are_unique_and_say_the_operator(body):
    names = [binding.var.name for binding in bindings(CanonicalBackbone()(module(body))["main"])]
    assert names[:2] == ["relu_1", "relu_2"] and len(set(names)) == 3


@pytest.mark.parametrize("body", BODIES)
def test_input_is_unchanged(body):
    mod = module(body)
    CanonicalBackbone()(mod)
    tvm.ir.assert_structural_equal(mod, module(body))


@pytest.mark.parametrize("body", BODIES)
def test_twice_equals_once(body):
    once = CanonicalBackbone()(module(body))
    again = CanonicalBackbone()(once)
    tvm.ir.assert_structural_equal(again, once)
    assert again.script() == once.script()


@pytest.mark.parametrize("body", BODIES)
def test_numbers_are_the_logits(body):
    assert_same_numbers(module(logits), CanonicalBackbone()(module(body)))
