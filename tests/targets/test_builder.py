"""Real kernels that the compiler or the machine chokes on: each is one failed result."""

from __future__ import annotations

import os

import kernel_samples as samples
import pytest
from tvm.s_tir import meta_schedule as ms
from tvm.script import tirx as T

from hapi_tvm.kernels import workload
from hapi_tvm.targets.forkserver_builder import ForkServerBuilder, remove_library
from hapi_tvm.targets.forkserver_runner import ForkServerRunner

GOOD = samples.add_relu(1, 7)


@T.prim_func(s_tir=True)
def enormous(a: T.Buffer((1 << 26,), "float32"), b: T.Buffer((1 << 26,), "float32")):
    """Unrolls into 64 million statements: the compiler does not come back."""
    for i in T.unroll(1 << 26):
        with T.sblock("copy"):
            v = T.axis.spatial(1 << 26, i)
            b[v] = a[v]


@T.prim_func(s_tir=True)
def refused(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
    """An intrinsic of another device, with too few arguments."""
    for i in range(4):
        with T.sblock("call"):
            v = T.axis.spatial(4, i)
            b[v] = T.call_intrin("float32", "tirx.tvm_load_matrix_sync", a[v])


@T.prim_func(s_tir=True)
def unlinked(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
    for i in range(4):
        with T.sblock("call"):
            v = T.axis.spatial(4, i)
            b[v] = T.call_extern("float32", "hapi_no_such_function", a[v])


@T.prim_func(s_tir=True)
def endless(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
    while a[0] < T.float32(1e30):
        b[0] = b[0] + a[0]


def build(*funcs, timeout_s=20.0):
    inputs = [ms.builder.BuilderInput(workload(func), samples.TARGET) for func in funcs]
    return ForkServerBuilder(workers=2, timeout_s=timeout_s).build(inputs)


def run(func, timeout_s=3.0):
    (built,) = build(func)
    assert built.error_msg is None
    arguments = ms.arg_info.ArgInfo.from_entry_func(workload(func), remove_preproc=True)
    try:
        runner = ForkServerRunner(threads=1, repeats=3, min_repeat_ms=1, timeout_s=timeout_s)
        (future,) = runner.run([ms.runner.RunnerInput(str(built.artifact_path), "llvm", arguments)])
        return future.result()
    finally:
        remove_library(str(built.artifact_path))


def test_a_hanging_compiler_is_one_lost_candidate():
    first, hung, last = build(GOOD, enormous, GOOD, timeout_s=5.0)
    assert "timed out" in str(hung.error_msg)
    for built in (first, last):
        assert built.error_msg is None and os.path.exists(str(built.artifact_path))
        remove_library(str(built.artifact_path))
        assert not os.path.exists(os.path.dirname(str(built.artifact_path)))


def test_a_refused_kernel_says_why():
    (built,) = build(refused)
    assert built.artifact_path is None and "Check failed" in str(built.error_msg)


def test_measured_seconds_are_plausible():
    result = run(GOOD)
    assert result.error_msg is None and len(result.run_secs) == 3
    assert all(1e-8 < float(seconds) < 1e-2 for seconds in result.run_secs)


@pytest.mark.parametrize(("func", "reason"), [(unlinked, "hapi_no_such_function"), (endless, "timed out")])
def test_a_kernel_that_cannot_run_is_one_failed_result(func, reason):
    result = run(func)
    assert result.run_secs is None and reason in str(result.error_msg)
