"""The target of this machine: what it is called, what it refuses, and that its threads are real."""

from __future__ import annotations

import pathlib

import pytest
import tvm

from hapi_tvm import processor, targets
from hapi_tvm.errors import TargetError
from hapi_tvm.targets.forkserver import shared_server
from hapi_tvm.targets.forkserver_runner import runtime_environment
from hapi_tvm.targets.llvm import _features, _known_processors, usable_cores


def flags() -> set[str]:
    return set(pathlib.Path("/proc/cpuinfo").read_text().split())


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


def test_unknown_processor_names_near_ones_and_all_known():
    with pytest.raises(TargetError, match=r"did you mean cascadelake.*mcpu='generic'.*Known are.* x86-64-v3"):
        targets.llvm(mcpu="cascadelak")


def test_a_processor_without_64_bit_mode_is_unknown():
    """LLVM would end the process: "64-bit code requested on a subtarget that doesn't support it"."""
    if "x86_64" not in str(tvm.target.codegen.llvm_get_system_triple()):
        pytest.skip("needs an x86-64 machine")
    with pytest.raises(TargetError, match="'pentium4' is none of the"):
        targets.llvm(mcpu="pentium4")


def test_a_processor_that_this_machine_is_not_names_what_is_missing_and_what_runs():
    here = flags()
    lacking = {"bdver1": ("fma4", "xop"), "sapphirerapids": ("avx512_fp16",), "apple-m1": ("asimddp",)}
    known = _known_processors()
    for mcpu, needed in lacking.items():
        if mcpu in known and not set(needed) & here:
            with pytest.raises(TargetError, match=f"{needed[-1]}.*mcpu='(x86-64-v.|generic)', which runs here"):
                targets.llvm(mcpu=mcpu)
            return
    pytest.skip(f"this machine has all that {', '.join(lacking)} have")


def test_where_llvm_promises_too_much_a_baseline_serves(monkeypatch, caplog):
    """As on a virtual machine that hides AVX: its name stays, its flags are fewer."""
    hidden = frozenset(flag for flag in flags() if not flag.startswith(("avx", "fma", "bmi")))
    monkeypatch.setattr(processor, "_flags_here", lambda: hidden)
    target = targets.llvm()
    assert target.vector_width == 4
    assert not set(target.needed_flags) - hidden
    assert f"mcpu={target.mcpu} serves" in caplog.text


def test_generic_is_the_least_of_the_architecture():
    target = targets.llvm(mcpu="generic")
    assert target.vector_width == 4
    assert target.name == "llvm generic threads=1"
    assert set(target.needed_flags) <= {"asimd"}


@pytest.mark.parametrize("width", [0, 1, 3, 12, 32, -8, 8.5])
def test_a_width_out_of_range(width):
    with pytest.raises(TargetError, match=rf"vector_width={width} must be one of 4, 8, 16 float32 lanes"):
        targets.llvm(vector_width=width)


def test_a_width_of_choice_is_another_target():
    chosen = targets.llvm(mcpu="generic", vector_width=8)
    assert (chosen.vector_width, chosen.mcpu) == (8, "generic")
    assert chosen.name != targets.llvm(mcpu="generic").name


def test_a_system_that_says_nothing_refuses_nothing(monkeypatch):
    monkeypatch.setattr(processor, "_flags_here", frozenset)
    assert processor.missing_flags(("avx512f", "sve2")) == ()


def test_the_flags_of_every_feature_are_real():
    """Each flag that LLVM's view of this machine maps to is one that the kernel shows, or is hidden from us."""
    mapped = set(processor.flags_of(_features(targets.llvm().mcpu)))
    assert len(mapped) >= 10 or "asimd" in mapped
    assert mapped <= flags()


@pytest.mark.parametrize("threads", [1, 2])
def test_thread_pool_has_the_asked_size(threads):
    (outcome,) = shared_server().map(pool_threads, [()], 20, environment=runtime_environment(threads))
    assert outcome.value == threads
