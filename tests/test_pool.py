"""Parallel kernels run on as many threads as a target has, whatever pool the process had before."""

from __future__ import annotations

import os
import threading

import pytest
import tvm
from tvm import te

from hapi_tvm.pool import VARIABLE, with_pool
from hapi_tvm.targets.llvm import usable_cores

SIZE = 8


@pytest.fixture(scope="module")
def workers_of():
    """How many threads share a parallel loop, from 8 iterations that each write the number of their thread."""
    x = te.placeholder((SIZE,), "int32", name="x")
    y = te.compute((SIZE,), lambda i: x[i] + tvm.tirx.call_extern("int32", "pthread_self"), name="y")
    schedule = tvm.s_tir.Schedule(tvm.IRModule({"main": te.create_prim_func([x, y])}))
    schedule.parallel(schedule.get_loops(schedule.get_sblock("y"))[0])
    kernel = tvm.tirx.build(schedule.mod, target="llvm")["main"]

    def count() -> int:
        given, found = (tvm.runtime.empty((SIZE,), "int32") for _ in range(2))
        kernel(given, found)
        return len(set((found.numpy() - given.numpy()).tolist()))

    return count


@pytest.mark.parametrize("threads", [1, 2, 1, 2])
def test_a_pool_of_the_size_that_was_asked_for(workers_of, threads):
    assert with_pool(threads, workers_of) == min(threads, usable_cores())


@pytest.mark.parametrize("before", [None, "7"])
def test_the_environment_is_as_before(monkeypatch, before):
    if before is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, before)
    assert with_pool(3, lambda: os.environ[VARIABLE]) == "3"
    assert os.environ.get(VARIABLE) == before
    with pytest.raises(ZeroDivisionError):
        with_pool(3, lambda: 1 // 0)
    assert os.environ.get(VARIABLE) == before


def test_a_thread_of_its_own():
    assert with_pool(1, threading.get_ident) != threading.get_ident()
