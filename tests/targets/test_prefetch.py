"""Prefetches name what comes next, all of it and in time, and change no number."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import kernel_samples as samples
import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import tirx
from tvm.s_tir.stmt import SBlockRealize

from hapi_tvm.kernels import buffer_shapes, workload
from hapi_tvm.targets.rules import cpu_default_schedule
from hapi_tvm.targets.rules.prefetch import AHEAD_FLOATS, LINE_FLOATS, MAX_WASTE, PrefetchWeights, spread
from hapi_tvm.targets.rules.vectors import AVX512

WEIGHT = 1  # its place among the arguments of the samples


def scheduled(func: tirx.PrimFunc, threads: int = 1) -> tvm.IRModule:
    return cpu_default_schedule(workload(func)["main"], AVX512, threads).mod


def weight_lines(stmt: tirx.Stmt, values: dict[tirx.Var, int], weight: tirx.Var) -> Iterator[tuple[str, int]]:
    """("fetch" or "use", line of the weights), in the order of execution: the loops, interpreted."""
    if isinstance(stmt, tirx.SeqStmt):
        for part in stmt.seq:
            yield from weight_lines(part, values, weight)
    elif isinstance(stmt, tirx.For):
        vectorised = stmt.kind == tirx.ForKind.VECTORIZED  # its first and last element name all its lines
        for number in {0, int(stmt.extent) - 1} if vectorised else range(int(stmt.extent)):
            yield from weight_lines(stmt.body, values | {stmt.loop_var: number}, weight)
    elif isinstance(stmt, SBlockRealize):
        inner = {
            var.var: evaluated(value, values)
            for var, value in zip(stmt.block.iter_vars, stmt.iter_values, strict=True)
        }
        for read in stmt.block.reads:
            if read.source.same_as(weight):
                yield "use", line(weight, [evaluated(axis.min, inner) for axis in read.region])
        if not isinstance(stmt.block.body, tirx.BufferStore):
            yield from weight_lines(stmt.block.body, values, weight)
    elif isinstance(stmt, tirx.Evaluate):
        load = stmt.value.args[1].args[0]
        if load.source.same_as(weight):
            yield "fetch", line(weight, [evaluated(index, values) for index in load.indices])


def evaluated(value: tirx.PrimExpr, values: dict[tirx.Var, int]) -> int:
    variables, formula = compiled(value)
    return formula(*(values[var] for var in variables))


@functools.cache
def compiled(value: tirx.PrimExpr) -> tuple[list[tirx.Var], Callable[..., int]]:
    """The variables of an expression, and the expression as a function of them. Names of variables may repeat."""
    variables = list(tirx.analysis.undefined_vars(value, []))
    names = [tirx.Var(f"v{index}", var.ty.dtype) for index, var in enumerate(variables)]
    (renamed,) = tirx.IndexMap(variables, [value], None).map_indices(names)
    return variables, eval(f"lambda {', '.join(var.name for var in names)}: {renamed}", {"__builtins__": {}})


def line(buffer: tirx.Var, indices: list[int]) -> int:
    offset = 0
    for index, extent in zip(indices, buffer.ty.shape, strict=True):
        offset = offset * int(extent) + index
    return offset // LINE_FLOATS


STREAMED = {
    "read again for each row": samples.blocked(32, 64, 8),
    "read once": samples.blocked(32, 64, 4),
    "read once, four streams": samples.blocked(16, 128, 2),
    "strided rows of a dense layer": samples.matmul(96, 80),
    "Winograd products": samples.winograd_blocked(32, 64, 8, 2),
}


@pytest.mark.parametrize("name", STREAMED)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_line_is_fetched_before_its_first_use_but_for_the_start(name, threads):
    """Nobody fetches what a kernel starts with: at most what one run of its nest, or the distance, holds."""
    func = PrefetchWeights()(scheduled(STREAMED[name], threads))["main"]
    fetched, used, late = set(), set(), set()
    for event, which in weight_lines(func.body, {}, func.params[WEIGHT]):
        if event == "fetch":
            fetched.add(which)
        else:
            used.add(which)
            if which not in fetched:
                late.add(which)
    lines = math.prod(buffer_shapes(func)[WEIGHT]) // LINE_FLOATS
    assert used == set(range(lines))
    assert 0 < len(late) < lines / 2 + AHEAD_FLOATS // LINE_FLOATS
    assert len(fetched & used) >= lines - len(late)


@pytest.mark.parametrize("name", STREAMED)
def test_the_numbers_stay_and_the_instructions_come(name):
    mod = scheduled(STREAMED[name])
    random = np.random.default_rng(3)
    arrays = [random.standard_normal(shape, dtype=np.float32) for shape in buffer_shapes(mod["main"])]
    found = []
    for each in (mod, PrefetchWeights()(mod)):
        library = tvm.tirx.build(each, target=samples.TARGET)
        arguments = [tvm.runtime.tensor(array.copy()) for array in arrays]
        library["main"](*arguments)
        found.append(arguments[-1].numpy())
        assert ("@llvm.prefetch" in library.inspect_source("ll")) == (each is not mod)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "func",
    [samples.blocked(16, 16, 8), samples.depthwise(16, 8), samples.max_pool(2, 8), samples.mean(2, 8)],
    ids=["one channel block", "depthwise", "pool", "mean"],
)
def test_kernels_that_stream_no_weights_stay_as_they_are(func):
    mod = scheduled(func)
    tvm.ir.assert_structural_equal(PrefetchWeights()(mod), mod)


def test_the_module_given_is_unchanged_and_unscheduled_kernels_stay():
    plain = workload(samples.blocked(32, 64, 8))
    tvm.ir.assert_structural_equal(PrefetchWeights()(plain), plain)
    mod = scheduled(plain["main"])
    before = tvm.ir.load_json(tvm.ir.save_json(mod))
    PrefetchWeights()(mod)
    tvm.ir.assert_structural_equal(mod, before)


@given(
    lines=st.integers(1, 5000),
    reuse=st.integers(1, 200),
    extents=st.lists(st.integers(1, 64), min_size=1, max_size=3),
)
def test_spread_covers_all_lines_and_wastes_little_below_the_first_loop(lines, reuse, extents):
    depth, count = spread(lines, reuse, extents)
    fetched = count * reuse * math.prod(extents[: depth + 1])
    assert fetched >= lines
    assert depth == 0 or fetched <= MAX_WASTE * lines
