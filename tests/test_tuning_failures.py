"""Whatever fails while kernels are tuned, each ends with a schedule that computes the right numbers."""

from __future__ import annotations

import dataclasses
import json
import logging

import kernel_samples as samples
import pytest
from tvm import s_tir, te, tirx
from tvm.ir.utils import derived_object
from tvm.s_tir import meta_schedule as ms

from hapi_tvm import targets
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import KernelDatabase, Scheduled, target_folder
from hapi_tvm.kernel_search import FIRST_BATCH
from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.targets.forkserver_builder import ForkServerBuilder
from hapi_tvm.targets.forkserver_runner import ForkServerRunner
from hapi_tvm.targets.llvm import LlvmTarget
from hapi_tvm.targets.rules.blocks import child_blocks, traced
from hapi_tvm.tuning import CHECKS, HOPELESS, Trial, best_schedules, tune

HERE = targets.llvm()
FIELDS = {field.name: getattr(HERE, field.name) for field in dataclasses.fields(HERE)}


def kernel(name: str, func: tirx.PrimFunc) -> Kernel:
    return Kernel(kernel_key(func), name, func)


CONVOLUTION = kernel("convolution", samples.blocked(16, 16, 14))
SUM = kernel("sum", samples.add_relu(2, 14))


def instead_of_sum(body) -> s_tir.Schedule:
    """A kernel with the arguments of ``SUM`` that computes ``body(data, other)`` at each place."""
    data, other = (te.placeholder((1, 2, 14, 14, 16), name=name) for name in ("data", "other"))
    output = te.compute(data.shape, lambda *place: body(data(*place), other(*place)))
    return traced(te.create_prim_func([data, other, output]))


@dataclasses.dataclass(frozen=True, slots=True)
class NothingBuilds(LlvmTarget):
    def builder(self):
        return ForkServerBuilder(workers=2, timeout_s=0.001)


@dataclasses.dataclass(frozen=True, slots=True)
class NothingRuns(LlvmTarget):
    def runner(self, repeats=5, min_repeat_ms=2):
        return ForkServerRunner(self.threads, repeats, min_repeat_ms, timeout_s=0.001)


@dataclasses.dataclass(frozen=True, slots=True)
class RuleRaises(LlvmTarget):
    def default_schedule(self, func):
        raise IndexError("loops[7] of 5")


@dataclasses.dataclass(frozen=True, slots=True)
class SpaceRaises(LlvmTarget):
    def space(self, func):
        def draw(schedule: s_tir.Schedule):
            return schedule.get_loops(child_blocks(schedule)[0])[99]

        return ms.space_generator.ScheduleFn(draw, sch_rules=[], postprocs=[], mutator_probs={})


@dataclasses.dataclass(frozen=True, slots=True)
class WrongRule(LlvmTarget):
    """Fast, and without the ReLU."""

    def default_schedule(self, func):
        return instead_of_sum(lambda data, other: data + other)


@dataclasses.dataclass(frozen=True, slots=True)
class UnlinkedRule(LlvmTarget):
    """It calls what no library has: the kernel compiles, and cannot be loaded."""

    def default_schedule(self, func):
        if kernel_key(func) != SUM.key:
            return HERE.default_schedule(func)
        return instead_of_sum(lambda data, other: tirx.call_extern("float32", "hapi_no_such_function", data))


FOLDS = (2, 4, 8, 16)


@dataclasses.dataclass(frozen=True, slots=True)
class WrongSpace(LlvmTarget):
    """No default, and a space in which several channels of the padded input share one place."""

    def default_schedule(self, func):
        return None

    def space(self, func):
        def draw(schedule: s_tir.Schedule):
            return [folded(schedule.copy(), fold) for fold in FOLDS]

        return ms.space_generator.ScheduleFn(draw, sch_rules=[], postprocs=[], mutator_probs={})


def folded(schedule: s_tir.Schedule, fold: int) -> s_tir.Schedule:
    padding = child_blocks(schedule)[0]
    schedule.transform_layout(
        padding, ("write", 0), lambda n, c, h, w, v: (n, c, h, w, v // fold), assume_injective_transform=True
    )
    return schedule


@derived_object
class SlowStart(ForkServerBuilder._cls):
    """Its first call is out of time, as on a machine that was busy."""

    def build(self, build_inputs):
        results = ForkServerBuilder._cls.build(self, build_inputs)
        self.timeout_s = 30.0
        return results


@dataclasses.dataclass(frozen=True, slots=True)
class BusyAtFirst(LlvmTarget):
    def builder(self):
        return SlowStart(workers=2, timeout_s=0.001)


def tuned(kind: type[LlvmTarget], kernels, folder, trials: int) -> tuple[list[Trial], dict[str, Scheduled]]:
    """Tune, and see that every kernel has a schedule of the right numbers; returns the trials and these."""
    target = kind(**FIELDS)
    seen: list[Trial] = []
    tune(kernels, target, folder, trials, seed=0, on_trial=seen.append)
    best = best_schedules(kernels, target, folder)
    assert differences([(item.func, best[item.key].func) for item in kernels], HERE) == [None] * len(kernels)
    return seen, best


def notes(folder) -> list[dict[str, str]]:
    path = target_folder(folder, HERE) / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("kind", [NothingBuilds, NothingRuns])
def test_where_nothing_works_the_untuned_schedules_serve_and_nothing_is_held_against_them(kind, tmp_path, caplog):
    seen, best = tuned(kind, [CONVOLUTION, SUM], tmp_path, 12)
    assert [trial.median_us for trial in seen] == [None] * len(seen) and len(seen) >= 2
    assert {scheduled.origin for scheduled in best.values()} == {"default"}
    assert notes(tmp_path) == []
    assert f"none of {len(seen)} candidates could be built and run" in caplog.text and "timed out" in caplog.text
    assert caplog.text.count("kernel convolution") == 1


def test_where_nothing_works_tuning_ends_soon(tmp_path):
    kernels = [kernel(f"sum {blocks}", samples.add_relu(blocks, 14)) for blocks in range(1, 31)]
    seen, _ = tuned(NothingBuilds, kernels, tmp_path, 600)
    assert HOPELESS <= len(seen) <= HOPELESS + len(kernels)


def test_a_default_rule_that_raises_is_logged_and_the_search_serves(tmp_path, caplog):
    _, best = tuned(RuleRaises, [CONVOLUTION], tmp_path, 4)
    assert best[CONVOLUTION.key].origin == "tuned"
    assert "kernel convolution gets no schedule" in caplog.text and "IndexError: loops[7] of 5" in caplog.text


def test_a_space_that_raises_is_logged_and_the_default_serves(tmp_path, caplog):
    seen, best = tuned(SpaceRaises, [CONVOLUTION], tmp_path, 4)
    assert best[CONVOLUTION.key].origin == "default" and len(seen) == 1
    assert "the search for kernel convolution ends" in caplog.text and "IndexError" in caplog.text


def test_a_wrong_default_is_dropped(tmp_path, caplog):
    _, best = tuned(WrongRule, [SUM], tmp_path, 1)
    assert best[SUM.key].origin == "plain"
    assert "of kernel sum is dropped: its output differs by" in caplog.text
    assert any("differs by" in note["reason"] for note in notes(tmp_path))


def test_where_every_schedule_is_wrong_the_kernel_stays_as_it_is(tmp_path, caplog):
    assert len(FOLDS) > CHECKS
    _, best = tuned(WrongSpace, [CONVOLUTION], tmp_path, 20)
    assert best[CONVOLUTION.key].origin == "plain"
    database = KernelDatabase(target_folder(tmp_path, HERE))
    wrong = [folded(traced(CONVOLUTION.func), fold) for fold in FOLDS]
    assert {kernel_key(schedule.mod["main"]) for schedule in wrong} <= database.tried(CONVOLUTION)
    assert caplog.text.count("of kernel convolution is dropped: its output differs") == CHECKS


def test_a_kernel_that_cannot_run_is_noted_and_named_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    seen, best = tuned(UnlinkedRule, [CONVOLUTION, SUM], tmp_path, 12)
    assert best[CONVOLUTION.key].origin in ("default", "tuned")
    assert best[SUM.key].origin == "tuned"
    (failed,) = [trial for trial in seen if trial.median_us is None]
    assert failed.kernel.name == "sum"
    assert [note["kernel"] for note in notes(tmp_path) if "hapi_no_such_function" in note["reason"]] == [SUM.key]
    (line,) = [record.getMessage() for record in caplog.records if "are dropped" in record.getMessage()]
    assert line.startswith("kernel sum: 1 of ") and "hapi_no_such_function" in line


def test_a_default_that_was_out_of_time_gets_a_second_chance(tmp_path):
    seen, best = tuned(BusyAtFirst, [SUM], tmp_path, 1)
    assert [trial.median_us is None for trial in seen] == [False]
    assert best[SUM.key].origin == "default" and notes(tmp_path) == []


def test_a_record_whose_trace_no_longer_fits_is_set_aside(tmp_path, caplog):
    tuned(LlvmTarget, [SUM], tmp_path, FIRST_BATCH)
    path = target_folder(tmp_path, HERE) / "records.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line.replace('"root"', '"absent"') for line in lines) + "\n")
    database = KernelDatabase(target_folder(tmp_path, HERE))
    assert database.measured(SUM) == []
    assert f"{len(lines)} broken lines moved" in caplog.text
    assert database.best(SUM, HERE).origin == "default"
