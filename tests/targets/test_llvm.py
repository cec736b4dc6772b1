"""The target of this machine: what it is called, what it refuses, and that its threads are real."""

from __future__ import annotations

import pathlib

import pytest
import tvm

from hapi_tvm import targets
from hapi_tvm.errors import TargetError
from hapi_tvm.targets.forkserver import shared_server
from hapi_tvm.targets.forkserver_runner import runtime_environment
from hapi_tvm.targets.llvm import usable_cores


def pool_threads():
    return int(tvm.get_global_func("runtime.NumThreads")())


def test_describes_this_machine():
    target = targets.llvm()
    assert isinstance(target, targets.Target)
    assert target.name == f"llvm {target.mcpu} threads=1"
    assert int(target.tvm_target.attrs["num-cores"]) == 1
    assert target == targets.llvm(threads=1, mcpu=target.mcpu)


def test_vector_width_is_that_of_the_processor():
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    expected = 16 if "avx512f" in flags else 8 if "avx2" in flags else 4
    assert targets.llvm().vector_width == expected


@pytest.mark.parametrize(("mcpu", "width"), [("haswell", 8), ("nehalem", 4), ("skylake-avx512", 16)])
def test_vector_width_follows_mcpu(mcpu, width):
    if "x86_64" not in str(tvm.target.codegen.llvm_get_system_triple()):
        pytest.skip("needs an x86-64 machine")
    assert targets.llvm(mcpu=mcpu).vector_width == width


@pytest.mark.parametrize("threads", [0, -1, usable_cores() + 1])
def test_threads_out_of_range(threads):
    with pytest.raises(TargetError, match=rf"threads={threads} must lie in 1..{usable_cores()}"):
        targets.llvm(threads=threads)


def test_unknown_processor_names_near_ones():
    with pytest.raises(TargetError, match="cascadelake"):
        targets.llvm(mcpu="cascadelak")


@pytest.mark.parametrize("threads", [1, 2])
def test_thread_pool_has_the_asked_size(threads):
    (outcome,) = shared_server().map(pool_threads, [()], 20, environment=runtime_environment(threads))
    assert outcome.value == threads
