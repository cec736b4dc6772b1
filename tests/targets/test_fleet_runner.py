"""Candidates are timed on boards: in order, scaled, several at once, and each failure is one result."""

from __future__ import annotations

import kernel_samples as samples
import pytest
from tvm.s_tir import meta_schedule as ms
from tvm.script import tirx as T

from hapi_tvm import targets
from hapi_tvm.kernels import workload
from hapi_tvm.targets.forkserver_builder import ForkServerBuilder
from hapi_tvm.targets.kernel_timing import shapes_of
from hapi_tvm.targets.rpc.fleet import Fleet, shared_fleet
from hapi_tvm.targets.rpc.runner import FleetRunner
from hapi_tvm.targets.rpc.tracker import Tracker
from hapi_tvm.targets.rpc.yardstick import CpuYardstick, GpuYardstick
from hapi_tvm.timing import results_in_order
from tests import boards

REPEATS = 3
SMALL, LARGE = samples.add_relu(1, 7), samples.add_relu(64, 56)


@T.prim_func(s_tir=True)
def unlinked(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
    for i in range(4):
        with T.sblock("call"):
            v = T.axis.spatial(4, i)
            b[v] = T.call_extern("float32", "hapi_no_such_function", a[v])


@pytest.fixture(scope="module")
def fleet():
    with boards.tracker() as tracker, boards.board(tracker), boards.board(tracker):
        yield shared_fleet(tracker)
        shared_fleet(tracker).close()


def times_s(fleet: Fleet, *funcs) -> list[ms.runner.RunnerResult]:
    """Built here, and timed on the fleet's boards."""
    target = targets.llvm()
    modules = [workload(func) for func in funcs]
    built = ForkServerBuilder(workers=2).build([ms.builder.BuilderInput(mod, target.tvm_target) for mod in modules])
    arguments = [ms.arg_info.ArgInfo.from_entry_func(mod, remove_preproc=True) for mod in modules]
    return list(results_in_order(built, arguments, FleetRunner(fleet, REPEATS, min_repeat_ms=2), target))


def test_results_come_in_the_order_of_the_candidates(fleet):
    results = times_s(fleet, SMALL, LARGE, SMALL, LARGE)
    assert [str(result.error_msg) for result in results] == ["None"] * 4
    assert all(len(result.run_secs) == REPEATS for result in results)
    medians_s = [sorted(map(float, result.run_secs))[REPEATS // 2] for result in results]
    # 64 x 56 x 56 against 7 x 7 blocks: no noise hides it.
    assert min(medians_s[1], medians_s[3]) > 20 * max(medians_s[0], medians_s[2])


def test_a_candidate_that_cannot_be_loaded_is_one_failed_result(fleet):
    good, bad, last = times_s(fleet, SMALL, unlinked, SMALL)
    assert "hapi_no_such_function" in str(bad.error_msg) and bad.run_secs is None
    assert good.error_msg is None and last.error_msg is None


def test_a_process_has_one_fleet_for_the_boards_of_a_key():
    nobody = Tracker("127.0.0.1", 1, "nobody")
    assert shared_fleet(nobody) is shared_fleet(Tracker("127.0.0.1", 1, "nobody"), CpuYardstick())
    assert shared_fleet(nobody) is targets.llvm(mcpu="generic", tracker=nobody.address, key=nobody.key).reach.fleet
    assert shared_fleet(nobody) is not shared_fleet(nobody, GpuYardstick("sm_90", "nvcc"))


def test_where_no_tracker_answers_the_caller_is_told(tmp_path):
    nobody = Fleet(Tracker("127.0.0.1", 1, boards.KEY), wait_s=1.0)
    info = ms.arg_info.ArgInfo.from_entry_func(workload(SMALL), remove_preproc=True)
    candidate = ms.runner.RunnerInput(str(tmp_path / "kernel.so"), "llvm", info)
    assert shapes_of(candidate)[-1] == (1, 1, 7, 7, 16)
    (future,) = FleetRunner(nobody, REPEATS, min_repeat_ms=2).run([candidate])
    with pytest.raises(Exception, match=r"no tracker at 127\.0\.0\.1:1"):
        future.result()
