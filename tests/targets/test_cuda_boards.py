"""GPUs of boards, as far as a machine without one can try: what is asked, what is refused, what is compiled for them.

The board is this machine, behind a tracker: real processes, real sessions.
"""

from __future__ import annotations

import pathlib
import platform

import numpy as np
import pytest
import tvm

from hapi_tvm import targets
from hapi_tvm.compiling import compile_module
from hapi_tvm.errors import TargetError
from hapi_tvm.targets.cuda_arch import cuda_tvm_target
from hapi_tvm.targets.nvcc import find_nvcc
from hapi_tvm.targets.rpc.check import check_boards
from hapi_tvm.targets.rpc.fleet import Fleet, shared_fleet
from hapi_tvm.targets.rpc.reference import plain_product
from hapi_tvm.targets.rpc.yardstick import GpuYardstick
from hapi_tvm.targets.rules.gpu import schedule_unbound
from hapi_tvm.timeline import Step
from tests import boards, place_jobs
from tests.boards import KEY
from tests.passes import networks, timelines
from tests.without_gpu import one_thread

NVCC = find_nvcc()
# NVIDIA's compiler is no part of what this project installs, and boards take machine code.
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="needs nvcc")
# What a machine says that has no GPU; one that has a GPU cannot say it.
needs_no_gpu = pytest.mark.skipif(tvm.cuda(0).exist, reason="needs a machine without a GPU")
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def tracker():
    with boards.tracker() as tracker, boards.board(tracker):
        yield tracker
        shared_fleet(tracker).close()


@needs_nvcc
@needs_no_gpu
@pytest.mark.parametrize("arch", [None, "sm_90"])
def test_a_board_without_a_gpu_is_told_when_the_target_is_made(tracker, arch):
    with pytest.raises(TargetError, match=f"board of key '{KEY}' at .* has no GPU to run on .*nvidia-smi"):
        targets.cuda(arch, tracker=tracker.address, key=KEY)


@needs_nvcc
@needs_no_gpu
def test_work_for_a_gpu_is_not_given_to_a_board_without_one(tracker):
    fleet = Fleet(tracker, GpuYardstick("sm_90", NVCC), wait_s=3.0)
    try:
        with pytest.raises(TargetError, match="its TVM finds no cuda device"):
            fleet.map(place_jobs.answer, [()], TIMEOUT_S)
    finally:
        fleet.close()


@needs_nvcc
def test_nobody_is_asked_where_all_is_told():
    """The board is first called when something is to run."""
    target = targets.cuda("sm_90", host=platform.machine(), tracker="127.0.0.1:1", key="gpus")
    assert (target.name, target.has_device) == ("cuda sm_90 key=gpus", True)
    reach = target.reach
    assert reach.remote and not reach.stamped and reach == target.reach
    assert reach.yardstick == GpuYardstick("sm_90", NVCC)


@needs_no_gpu
def test_a_check_reports_no_gpu_where_there_is_none(tracker):
    (report,) = check_boards(tracker, wait_s=20.0)
    assert report.gpu is None and report.speed_gflops > 0


@needs_nvcc
def test_the_reference_kernel_is_compiled_once_for_an_architecture(tmp_path):
    triple = f"{platform.machine()}-unknown-linux-gnu"
    first = pathlib.Path(GpuYardstick("sm_90", NVCC).library(triple, str(tmp_path)))
    written = first.stat().st_mtime_ns
    assert GpuYardstick("sm_90", NVCC).library(triple, str(tmp_path)) == str(first)
    assert first.stat().st_mtime_ns == written
    other = GpuYardstick("sm_80", NVCC).library(triple, str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.name, pathlib.Path(other).name])


@needs_nvcc
def test_a_reference_kernel_that_nvcc_refuses_is_an_error_of_ours(tmp_path):
    with pytest.raises(TargetError, match="the reference kernel does not compile for sm_1"):
        GpuYardstick("sm_1", NVCC).library(f"{platform.machine()}-unknown-linux-gnu", str(tmp_path))


def test_the_reference_kernel_is_a_product():
    """With its threads run one after the other, on the CPU."""
    size = GpuYardstick("sm_90", "nvcc").size
    scheduled = schedule_unbound(plain_product(size), cuda_tvm_target("sm_90", platform.machine()))["main"]
    kernel = tvm.tirx.build(tvm.IRModule({"main": one_thread(scheduled)}), target=tvm.target.Target({"kind": "llvm"}))
    a, b = (np.random.default_rng(seed).standard_normal((size, size), dtype=np.float32) for seed in (1, 2))
    c = tvm.runtime.tensor(np.zeros_like(a))
    kernel["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), c)
    np.testing.assert_allclose(c.numpy(), a @ b, atol=1e-3)


@pytest.mark.parametrize("slow", [0, 2])
def test_pieces_on_a_gpu_are_timed_one_call_at_a_time(tracker, slow):
    """What times them is the same for every device of a board: here it is its processor."""
    target = targets.llvm(tracker=tracker.address, key=KEY)
    names = ["quick"] * 3
    names[slow] = "slow"
    with target.reach.staged(compile_module(timelines.napping(), {}, target)) as program:
        image = np.zeros(timelines.SHAPE, np.float32)
        ran = target.reach.run(
            place_jobs.pieces_us_as_of_a_gpu, program, timelines.chain(*names), image, timeout_s=TIMEOUT_S
        )
    assert [took_us >= timelines.NAP_US / 2 for took_us in ran.value] == [name == "slow" for name in names]


def test_each_piece_on_a_gpu_reads_what_its_step_says(tracker):
    target = targets.llvm(tracker=tracker.address, key=KEY)
    steps = [*timelines.chain("segment_00", "segment_01"), Step("segment_01", 0), Step("exit_01_linear", 2)]
    with target.reach.staged(compile_module(networks.lowered(), {}, target)) as program:
        ran = target.reach.run(
            place_jobs.pieces_us_as_of_a_gpu, program, steps, networks.images(1)[0], timeout_s=TIMEOUT_S
        )
    assert len(ran.value) == len(steps) and all(took_us > 0 for took_us in ran.value)
