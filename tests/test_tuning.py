"""Tuning really measures, keeps what it measured, and goes on after a kill."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import kernel_samples as samples
import numpy as np
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from tvm import relax, topi
from tvm.s_tir import meta_schedule as ms

import hapi_tvm
from hapi_tvm import kernel_search, targets
from hapi_tvm.compiling import compile_module
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import MARGIN, KernelDatabase, default, target_folder
from hapi_tvm.kernels import kernel_key, workload
from hapi_tvm.tuning import Kernel, Trial, best_schedules, split_trials, tune

TARGET = targets.llvm()
FUNCS = {
    "convolution": samples.blocked(16, 16, 14, epilogue=("bias", "residual", "relu")),
    "first": samples.blocked(1, 16, 14),
    "dense": samples.dense(64, 10),
}
KERNELS = [
    Kernel(kernel_key(func), name, func, weight)
    for (name, func), weight in zip(FUNCS.items(), (4.0, 1.0, 1.0), strict=True)
]
TRIALS = 12


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[pathlib.Path, list[Trial]]:
    folder = tmp_path_factory.mktemp("tuned")
    trials: list[Trial] = []
    before = [kernel.func.script() for kernel in KERNELS]
    tune(KERNELS, TARGET, folder, TRIALS, seed=0, on_trial=trials.append)
    assert [kernel.func.script() for kernel in KERNELS] == before
    return folder, trials


@pytest.fixture
def database_dir(tuned, tmp_path) -> pathlib.Path:
    """A copy of the tuned database, to be damaged."""
    return pathlib.Path(shutil.copytree(tuned[0], tmp_path / "database"))


def lines(database_dir: pathlib.Path, name: str) -> list[str]:
    path = target_folder(database_dir, TARGET) / name
    return path.read_text().splitlines() if path.exists() else []


def opened(database_dir: pathlib.Path) -> KernelDatabase:
    return KernelDatabase(target_folder(database_dir, TARGET))


def test_key_is_of_the_structure_not_the_names():
    func = FUNCS["dense"]
    renamed = func.with_attr("global_symbol", "another").with_attr("op_pattern", 4)
    assert kernel_key(renamed) == kernel_key(func)
    assert kernel_key(samples.dense(64, 11)) != kernel_key(func)


def test_key_is_the_same_in_another_process():
    code = (
        "from hapi_tvm import tvm_compat; tvm_compat.skip_torch(); import kernel_samples as s;"
        "from hapi_tvm.kernels import kernel_key; print(kernel_key(s.dense(64, 10)))"
    )
    found = subprocess.run([sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True)
    assert found.stdout.strip() == kernel_key(FUNCS["dense"]), found.stderr


@given(
    st.lists(st.floats(min_value=0, max_value=1e6, allow_nan=False), max_size=40),
    st.integers(min_value=0, max_value=500),
)
def test_split_trials_spends_exactly_the_budget(weights, trials):
    split = split_trials(weights, trials)
    assert len(split) == len(weights)
    assert all(count >= 0 for count in split)
    if weights:
        assert sum(split) == trials
    if trials >= len(weights):
        assert all(count >= 1 for count in split)
    for one, other in zip(range(len(split)), range(1, len(split)), strict=False):
        if weights[one] > weights[other]:
            assert split[one] >= split[other]


def test_every_trial_is_a_record_or_a_rejection(tuned):
    folder, trials = tuned
    assert [trial.done for trial in trials] == list(range(1, len(trials) + 1))
    assert 3 <= len(trials) <= TRIALS
    succeeded = [trial for trial in trials if trial.median_us is not None]
    records = lines(folder, "records.json")
    assert len(records) == len(succeeded) >= 3
    for record in records:
        seconds = json.loads(record)[1][1]
        assert len(seconds) == 5 and all(1e-8 < value < 1e-1 for value in seconds)


def test_the_search_went_beyond_the_default(tuned):
    measured = opened(tuned[0]).measured(KERNELS[0])
    keys = [item.scheduled.key for item in measured]
    assert len(set(keys)) == len(keys) >= 4
    assert default(KERNELS[0], TARGET).key in keys
    medians = [item.median_s for item in measured]
    assert medians == sorted(medians)


def test_the_fastest_serves_unless_the_default_is_as_fast(tuned):
    for kernel in KERNELS:
        database = opened(tuned[0])
        median_s = {item.scheduled.key: item.median_s for item in database.measured(kernel)}
        best = database.best(kernel, TARGET)
        fallback = default(kernel, TARGET)
        assert median_s[best.key] <= median_s[fallback.key]
        if best.key == fallback.key:
            assert min(median_s.values()) >= (1 - MARGIN) * median_s[fallback.key]
        else:
            assert median_s[best.key] == min(median_s.values())


def test_a_second_run_tunes_nothing(tuned):
    again: list[Trial] = []
    tune(KERNELS, TARGET, tuned[0], TRIALS, seed=5, on_trial=again.append)
    assert again == []


def test_a_larger_budget_tries_only_what_is_new(database_dir):
    before = lines(database_dir, "records.json")
    again: list[Trial] = []
    tune(KERNELS[:1], TARGET, database_dir, TRIALS, seed=0, on_trial=again.append)
    after = lines(database_dir, "records.json")
    assert 1 <= len(again) < TRIALS
    assert after[: len(before)] == before
    database = opened(database_dir)
    keys = [item.scheduled.key for item in database.measured(KERNELS[0])]
    assert len(keys) == len(set(keys))


def test_no_trials_return_at_once_and_the_default_serves(tmp_path):
    tune(KERNELS, TARGET, tmp_path, 0, seed=0)
    assert list(tmp_path.iterdir()) == []
    best = best_schedules(KERNELS, TARGET, tmp_path)
    assert {scheduled.origin for scheduled in best.values()} == {"default"}


def test_tuned_kernels_compute_the_same(tuned):
    best = best_schedules(KERNELS, TARGET, tuned[0])
    assert {best[kernel.key].origin for kernel in KERNELS} <= {"tuned", "default"}
    pairs = [(kernel.func, best[kernel.key].func) for kernel in KERNELS]
    assert differences(pairs, TARGET) == [None] * 3
    assert len(lines(tuned[0], "checked.jsonl")) == 3


def test_wrong_numbers_are_found():
    right = samples.blocked(16, 16, 7, epilogue=("bias", "relu"))
    wrong = samples.blocked(16, 16, 7, epilogue=("bias",))
    (found,) = differences([(right, wrong)], TARGET)
    assert "differs by" in found


def test_a_rejected_schedule_gives_way_to_the_next(database_dir):
    kernel = KERNELS[0]
    database = opened(database_dir)
    tried = database.tried(kernel)
    first = database.best(kernel, TARGET)
    database.reject(kernel, first.key, "computes wrong numbers")
    reopened = opened(database_dir)
    second = reopened.best(kernel, TARGET)
    assert second.key != first.key and second.key in tried
    assert reopened.tried(kernel) == tried


def test_all_rejected_falls_back_to_the_default_then_to_the_plain_kernel(database_dir):
    kernel = KERNELS[0]
    database = opened(database_dir)
    origins = []
    while (best := database.best(kernel, TARGET)).origin != "plain":
        origins.append(best.origin)
        database.reject(kernel, best.key, "computes wrong numbers")
    assert len(origins) >= 4 and best.func.same_as(kernel.func)


def test_a_batch_that_brings_nothing_ends_the_search(tmp_path, monkeypatch):
    func = samples.blocked(16, 32, 28)
    kernel = Kernel(kernel_key(func), "large", func)
    monkeypatch.setattr(kernel_search, "MINIMUM_GAIN", 0.999)
    trials: list[Trial] = []
    tune([kernel], TARGET, tmp_path, 200, seed=0, on_trial=trials.append)
    assert 1 + kernel_search.BATCH // 2 <= len(trials) <= 1 + kernel_search.BATCH
    again: list[Trial] = []
    tune([kernel], TARGET, tmp_path, 300, seed=0, on_trial=again.append)
    assert again == []
    (note,) = (json.loads(line) for line in lines(tmp_path, "rejected.jsonl"))
    assert "candidates brought less than" in note["reason"]


@pytest.mark.parametrize("garbage", [b"[0, [[[", b"\xff\x00\xfe", b"[0, {}]", b"[99, [1, 2]]", b"null"])
def test_a_broken_record_line_is_set_aside(database_dir, garbage, caplog):
    path = target_folder(database_dir, TARGET) / "records.json"
    good = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([good[0], garbage, *good[1:]]))
    database = opened(database_dir)
    assert path.read_bytes().splitlines() == good
    assert path.with_name("records.json.broken-1").exists()
    assert "1 broken lines moved" in caplog.text
    assert sum(len(database.measured(kernel)) for kernel in KERNELS) == len(good)


def test_a_broken_workload_line_loses_its_records_only(database_dir):
    folder = target_folder(database_dir, TARGET)
    expected = {kernel.key: len(opened(database_dir).measured(kernel)) for kernel in KERNELS}
    stored = (folder / "workloads.json").read_text().splitlines()
    lost = next(
        kernel.key
        for kernel in KERNELS
        if kernel_key(ms.database.Workload.from_json(json.loads(stored[0])).mod["main"]) == kernel.key
    )
    (folder / "workloads.json").write_text("\n".join([stored[0][: len(stored[0]) // 2], *stored[1:]]) + "\n")
    database = opened(database_dir)
    found = {kernel.key: len(database.measured(kernel)) for kernel in KERNELS}
    assert found == expected | {lost: 0}
    # And again: the repaired files are consistent.
    assert {kernel.key: len(opened(database_dir).measured(kernel)) for kernel in KERNELS} == found
    tune(KERNELS, TARGET, database_dir, TRIALS, seed=0)
    assert opened(database_dir).measured(next(k for k in KERNELS if k.key == lost))


def child_environment() -> dict[str, str]:
    root = pathlib.Path(hapi_tvm.__file__).resolve().parent.parent
    path = os.pathsep.join([str(root), str(pathlib.Path(__file__).resolve().parent)])
    return {**os.environ, "PYTHONPATH": path}


CHILD = """
import sys
from hapi_tvm import tvm_compat
tvm_compat.skip_torch()
from test_tuning import KERNELS, TARGET, TRIALS, tune
tune(KERNELS, TARGET, sys.argv[1], TRIALS, 0, lambda trial: print(trial.done, flush=True))
"""


def test_killed_while_tuning_then_resumed(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env=child_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    for line in child.stdout:
        if int(line) == 4:
            child.send_signal(signal.SIGKILL)
            break
    assert child.wait(30) == -signal.SIGKILL
    before = lines(tmp_path, "records.json")
    rejected = lines(tmp_path, "rejected.jsonl")
    tried = sum(len(opened(tmp_path).tried(kernel)) for kernel in KERNELS)
    assert tried >= 4
    resumed: list[Trial] = []
    tune(KERNELS, TARGET, tmp_path, TRIALS, seed=0, on_trial=resumed.append)
    assert len(resumed) <= TRIALS - tried
    after = lines(tmp_path, "records.json")
    assert after[: len(before)] == before and lines(tmp_path, "rejected.jsonl")[: len(rejected)] == rejected
    for kernel in KERNELS:
        keys = [item.scheduled.key for item in opened(tmp_path).measured(kernel)]
        assert len(keys) == len(set(keys)) >= 1


def fused_module() -> tvm.IRModule:
    """Relax: two kernels, as FuseTIR leaves them."""
    builder = relax.BlockBuilder()
    data = relax.Var("data", relax.TensorType((1, 1, 7, 7, 16), "float32"))
    with builder.function("main", [data]):
        with builder.dataflow():
            hidden = builder.emit_te(topi.nn.relu, data)
            output = builder.emit_output(builder.emit_te(lambda t: topi.add(t, te_constant()), hidden))
        builder.emit_func_output(output)
    return builder.get()


def te_constant():
    return tvm.tirx.const(1.0, "float32")


def test_a_module_compiles_with_schedules_and_stays_as_it_was(tmp_path):
    mod = fused_module()
    kernels = [
        Kernel(kernel_key(func), variable.name_hint, func)
        for variable, func in mod.functions_items()
        if isinstance(func, tvm.tirx.PrimFunc)
    ]
    schedules = best_schedules(kernels, TARGET, tmp_path)
    assert {scheduled.origin for scheduled in schedules.values()} == {"default"}
    machine = relax.VirtualMachine(compile_module(mod, schedules, TARGET), tvm.cpu())
    tvm.ir.assert_structural_equal(mod, fused_module())
    data = np.random.default_rng(0).standard_normal((1, 1, 7, 7, 16), dtype=np.float32)
    np.testing.assert_array_equal(machine["main"](tvm.runtime.tensor(data)).numpy(), np.maximum(data, 0) + 1)


def test_workload_is_what_the_database_finds(tuned):
    named = FUNCS["convolution"].with_attr("global_symbol", "fused_conv2d_add7")
    assert opened(tuned[0]).measured(Kernel(kernel_key(named), "other", named))
    assert workload(named)["main"].attrs["global_symbol"] == "main"
