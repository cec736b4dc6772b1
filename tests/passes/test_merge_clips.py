from __future__ import annotations

import math

import pytest
import tvm
from tvm import relax, topi
from tvm.relax import op

from hapi_tvm.passes.merge_clips import MergeClips
from tests.passes.graphs import assert_equal, assert_same_numbers, constant, module


def split_in_two(x, emit):
    return emit(op.clip(emit(op.clip(x, 0.0, math.inf)), -math.inf, 6.0))


def one(x, emit):
    return emit(op.clip(x, 0.0, 6.0))


def read_in_between(x, emit):
    low = emit(op.clip(x, 0.0, math.inf))
    return emit(op.add(emit(op.clip(low, -math.inf, 6.0)), low))


def bounds_that_cross(x, emit):
    return emit(op.clip(emit(op.clip(x, 2.0, 3.0)), 0.0, 1.0))


def lowered() -> tvm.IRModule:
    """As the ONNX frontend of TVM 0.27 imports Clip."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 6, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            low = builder.emit_te(topi.maximum, x, constant(0.0))
            output = builder.emit_output(builder.emit_te(topi.minimum, low, constant(6.0)))
        builder.emit_func_output(output)
    return builder.finalize()


SOURCES = {
    "split": lambda: module(split_in_two),
    "read": lambda: module(read_in_between),
    "cross": lambda: module(bounds_that_cross),
    "lowered": lowered,
}


@pytest.mark.parametrize("source", ["split", "lowered"])
def test_two_bounds_become_one_clip(source):
    merged = MergeClips()(SOURCES[source]())
    assert_equal(merged, module(one))
    assert len(merged.get_global_vars()) == 1


def test_a_bound_that_something_else_reads_stays():
    assert_equal(MergeClips()(module(read_in_between)), module(read_in_between))


def test_loops_that_are_no_bound_stay():
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 6, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(builder.emit_te(topi.add, x, constant(6.0)))
        builder.emit_func_output(output)
    mod = builder.finalize()
    assert_equal(MergeClips()(mod), mod)


@pytest.mark.parametrize("source", SOURCES)
def test_input_is_unchanged(source):
    mod = SOURCES[source]()
    MergeClips()(mod)
    tvm.ir.assert_structural_equal(mod, SOURCES[source]())


@pytest.mark.parametrize("source", SOURCES)
def test_twice_equals_once(source):
    once = MergeClips()(SOURCES[source]())
    tvm.ir.assert_structural_equal(MergeClips()(once), once)


@pytest.mark.parametrize("source", SOURCES)
def test_numbers_stay(source):
    mod = SOURCES[source]()
    assert_same_numbers(mod, MergeClips()(mod))
