"""One contract for both places: what runs in this process runs on a board, with the same answers.

The board is TVM's own server on this machine, behind a tracker: real processes, real sessions.
"""

from __future__ import annotations

import kernel_samples as samples
import numpy as np
import pytest
import tvm
from tvm import te

from hapi_tvm import targets
from hapi_tvm.compiling import compile_module
from hapi_tvm.errors import BuildError, TargetError
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernels import Kernel, kernel_key, workload
from hapi_tvm.measuring import measure
from hapi_tvm.overheads import measure_overheads
from hapi_tvm.passes.kernel_timeline import KernelTimeline
from hapi_tvm.passes.piece_timeline import PieceTimeline
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.tuning import Trial, best_schedules, tune
from tests import boards, place_jobs
from tests.boards import KEY
from tests.passes import networks, timelines

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def tracker():
    with boards.tracker() as tracker, boards.board(tracker, plain=True):
        yield tracker
        shared_fleet(tracker).close()


@pytest.fixture(scope="module", params=["here", "board"])
def target(request) -> targets.Target:
    if request.param == "here":
        return targets.llvm()
    return targets.llvm(tracker=request.getfixturevalue("tracker").address, key=KEY)


def test_it_is_a_target_with_a_name_of_its_own(target):
    assert isinstance(target, targets.Target)
    assert target.name.endswith(f" key={KEY}") == target.reach.remote
    assert target.mcpu == targets.llvm().mcpu


@pytest.mark.parametrize("fires", [0, 1, 2])
def test_a_design_answers_as_torch_does(target, fires):
    thresholds = np.full(2, np.inf, np.float32)
    thresholds[fires:] = 0.0
    image = networks.images(1, seed=fires)[0]
    with target.reach.staged(compile_module(networks.routed(), {}, target)) as program:
        ran = target.reach.run(place_jobs.answer, program, image, thresholds, timeout_s=TIMEOUT_S)
    probabilities, taken, confidence = ran.value
    expected, largest = networks.oracle_answers(image, networks.KEPT)[fires]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
    assert int(taken) == fires and confidence[0] == pytest.approx(largest, rel=1e-4)
    assert 0.5 < ran.scale < 2


@pytest.mark.parametrize("slow", [0, 2])
def test_the_piece_that_sleeps_is_the_one_that_took_long(target, slow):
    names = ["quick"] * 3
    names[slow] = "slow"
    steps = timelines.chain(*names)
    mod = timelines.napping()
    mod = PieceTimeline(steps)(mod) if target.reach.stamped else mod
    with target.reach.staged(compile_module(mod, {}, target)) as program:
        image = np.zeros(timelines.SHAPE, np.float32)
        found_us = target.reach.run(place_jobs.pieces_us, program, steps, image, timeout_s=TIMEOUT_S).value
    assert [took_us >= timelines.NAP_US / 2 for took_us in found_us] == [name == "slow" for name in names]


def test_every_kernel_of_a_backbone_takes_its_time(target):
    mod = networks.routed(())
    names = networks.kernels(mod["segment_00"])
    mod = KernelTimeline()(mod) if target.reach.stamped else mod
    with target.reach.staged(compile_module(mod, {}, target)) as program:
        image = networks.images(1)[0]
        found_us = target.reach.run(place_jobs.kernels_us, program, names, image, timeout_s=TIMEOUT_S).value
    assert len(found_us) == len(names) and all(0 < took_us < 1e5 for took_us in found_us)


def test_what_the_virtual_machine_adds_is_small_and_positive(target):
    found = measure_overheads(target)
    assert 0 < found.entry_us < 500 and 0 < found.call_us < 100 and 0 <= found.gate_us < 500


def test_measured_kernels_are_kept_by_the_name_of_the_target(target, tmp_path):
    wanted = [Kernel(kernel_key(func), name, func) for name, func in KERNELS.items()]
    table = measure(wanted, target, tmp_path, repeats=5)
    assert all(0.01 < table[kernel.key].median_us < 1e5 for kernel in wanted)
    (folder,) = tmp_path.iterdir()
    assert folder.name.endswith(f"key-{KEY}-tvm-{tvm.__version__}") == target.reach.remote


KERNELS = {"sum": samples.add_relu(1, 7), "dense": samples.dense(64, 10)}


def test_candidates_are_tuned_where_they_will_run(target, tmp_path):
    wanted = [Kernel(kernel_key(KERNELS["dense"]), "dense", KERNELS["dense"])]
    trials: list[Trial] = []
    tune(wanted, target, tmp_path, trials=3, seed=0, on_trial=trials.append)
    assert len(trials) == 3 and any(trial.median_us is not None for trial in trials)
    best = best_schedules(wanted, target, tmp_path)[wanted[0].key]
    assert differences([(KERNELS["dense"], best.func)], target) == [None]


def doubled_sum() -> tvm.tirx.PrimFunc:
    """The arguments of the sum, and another answer."""
    data, other = (te.placeholder((1, 1, 7, 7, 16), name=name) for name in ("data", "other"))
    return te.create_prim_func(
        [data, other, te.compute(data.shape, lambda *place: 2.0 * data(*place) + other(*place))]
    )


def test_numbers_are_compared_with_those_of_this_machine(target):
    plain = KERNELS["sum"]
    scheduled = target.default_schedule(workload(plain)["main"]).mod["main"]
    right, wrong = differences([(plain, scheduled), (plain, doubled_sum())], target)
    assert right is None and "of the largest value" in wrong


def test_a_function_that_fails_says_why(target):
    (outcome,) = target.reach.attempt(place_jobs.fail, [("no such tile",)], TIMEOUT_S)
    assert "ValueError: no such tile on device 0" in outcome.error
    with pytest.raises((ValueError, BuildError), match="no such tile on device 0"):
        target.reach.run(place_jobs.fail, "no such tile", timeout_s=TIMEOUT_S)


def test_an_exported_library_is_of_the_target(target, tmp_path):
    library = tmp_path / "design.so"
    target.reach.export(compile_module(networks.routed(()), {}, target), library)
    image = networks.images(1)[0]
    ran = target.reach.run(place_jobs.answer, str(library), image, timeout_s=TIMEOUT_S)
    expected, _ = networks.oracle_answers(image, ())[0]
    np.testing.assert_allclose(ran.value[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", [{"tracker": "127.0.0.1:9190"}, {"key": "rasp4b"}])
def test_a_tracker_and_a_key_belong_together(given):
    with pytest.raises(TargetError, match="belong together"):
        targets.llvm(**given)


def test_a_processor_that_llvm_does_not_know_is_refused_before_any_board_is_asked():
    with pytest.raises(TargetError, match="did you mean cascadelake"):
        targets.llvm(mcpu="cascadelak", tracker="127.0.0.1:1", key="nobody")


def test_a_board_may_be_what_this_machine_is_not():
    """Nothing is compared with this machine, and nobody is asked until something is to run."""
    if "x86_64" not in str(tvm.target.codegen.llvm_get_system_triple()):
        pytest.skip("needs an x86-64 machine")
    target = targets.llvm(threads=64, mcpu="sapphirerapids", tracker="127.0.0.1:1", key="server")
    assert (target.name, target.vector_width) == ("llvm sapphirerapids threads=64 key=server", 16)
    with pytest.raises(TargetError, match="threads=0 must be at least 1"):
        targets.llvm(threads=0, tracker="127.0.0.1:1", key="server")


def test_more_threads_than_a_board_has_are_refused(tracker):
    target = targets.llvm(threads=999, mcpu="generic", tracker=tracker.address, key=KEY)
    with pytest.raises(BuildError, match=r"threads=999, but board .* runs kernels on \d"):
        target.reach.run(place_jobs.device_index, timeout_s=TIMEOUT_S)

