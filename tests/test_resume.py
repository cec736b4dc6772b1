"""SIGKILL at any moment: the next start goes on, repeats no measurement, and reads nothing half-written."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import pytest

import hapi_tvm
from hapi_tvm.errors import RunBusy
from hapi_tvm.kernel_database import KernelDatabase, replay, target_folder
from hapi_tvm.kernels import kernel_key
from hapi_tvm.report import read_report
from hapi_tvm.runfolder import RunFolder
from tests.small_job import TARGET, SmallJob, log_lines

TRIALS = 24
PATIENCE_S = 120.0  # for a child to get where it is killed
POLL_S = 0.005
KILLED = -signal.SIGKILL


def child(job: SmallJob) -> subprocess.Popen:
    """``hapi-tvm build`` of the job, in a process of its own."""
    root = pathlib.Path(hapi_tvm.__file__).resolve().parent.parent
    options = job.build_options()
    options[options.index("--trials") + 1] = str(TRIALS)
    return subprocess.Popen(
        [sys.executable, "-m", "hapi_tvm.cli", *options],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_when(job: SmallJob, reached: Callable[[], bool]) -> None:
    """Start a build and SIGKILL it as soon as ``reached`` holds; its workers must end by themselves."""
    process = child(job)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not reached():
            assert process.poll() is None, f"the build ended by itself with code {process.returncode}"
            assert time.monotonic() < deadline_s, "the build never got there"
            time.sleep(POLL_S)
        workers = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
    assert process.wait(30) == KILLED
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert alive == [], "left behind, they would disturb what the next build measures"


@dataclass(frozen=True, slots=True)
class OnDisk:
    """What a job's folders hold, as lines and as times of change."""

    job: SmallJob

    def lines(self, name: str) -> list[str]:
        """Complete lines of a file of the database."""
        path = target_folder(self.job.database_dir, TARGET) / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def has(self, name: str) -> bool:
        return (self.job.run_dir / name).exists()

    def changed_ns(self, *names: str) -> list[int]:
        return [(self.job.run_dir / name).stat().st_mtime_ns for name in names]

    def leftovers(self) -> list[str]:
        """Files that were set aside as broken, or that a writer left behind."""
        found = [path for folder in (self.job.run_dir, self.job.database_dir) for path in folder.rglob("*")]
        return [path.name for path in found if ".broken-" in path.name or path.name.startswith(".tmp-")]

    def trials(self) -> list[tuple[str, str]]:
        """(kernel, schedule) of each record and each rejection."""
        folder = target_folder(self.job.database_dir, TARGET)
        records = KernelDatabase(folder).tvm_database.get_all_tuning_records()
        measured = [(kernel_key(record.workload.mod["main"]), replay(record).key) for record in records]
        rejected = [(note["kernel"], note["schedule"]) for note in map(json.loads, self.lines("rejected.jsonl"))]
        return measured + rejected

    def measurements(self) -> list[tuple[str, str]]:
        return [(line["kernel"], line["schedule"]) for line in map(json.loads, self.lines("measurements.jsonl"))]


def assert_none_twice(keys: list[tuple[str, str]]) -> None:
    assert [key for key, count in Counter(keys).items() if count > 1] == []


def test_killed_in_training_in_tuning_and_in_measuring(fresh: SmallJob, caplog):
    """One build, killed three times, then left alone; what each life left on disk is in the next one's."""
    disk = OnDisk(fresh)

    kill_when(fresh, lambda: disk.has("exits.json"))
    assert not disk.has("branches.npz")
    exits_ns = disk.changed_ns("exits.json")

    kill_when(fresh, lambda: len(disk.lines("records.json")) >= 3)
    assert disk.changed_ns("exits.json") == exits_ns
    records = disk.lines("records.json")
    assert disk.has("calibrate.npz") and not disk.has("latency.json")
    trained_ns = disk.changed_ns("exits.json", "branches.npz", "calibrate.npz")
    untuned = len(disk.lines("measurements.jsonl"))  # of algorithms that may be worth tuning

    kill_when(fresh, lambda: len(disk.lines("measurements.jsonl")) >= untuned + 2)
    assert disk.lines("records.json")[: len(records)] == records
    records, measurements = disk.lines("records.json"), disk.lines("measurements.jsonl")
    assert not disk.has("latency.json")

    with caplog.at_level("INFO", logger="hapi_tvm"):
        artifact = fresh.build(trials=TRIALS)
    assert artifact.path == fresh.run_dir / "model.so"
    assert disk.changed_ns("exits.json", "branches.npz", "calibrate.npz") == trained_ns
    assert {"train", "calibrate"}.isdisjoint(log_lines(caplog))
    assert disk.lines("records.json") == records
    assert disk.lines("measurements.jsonl")[: len(measurements)] == measurements
    assert_none_twice(disk.trials())
    assert_none_twice(disk.measurements())
    assert disk.leftovers() == []

    report = read_report(fresh.run_dir)
    assert all(kernel["measured"] for kernel in report["kernels"])
    assert report["verification"]["same_exit"] == report["verification"]["samples"]


# What a run folder holds when the process dies behind a later stage.
LATER = {
    "measure": (),
    "search": ("design.json",),
    "compile": ("design.json", "model.so"),
    "test": ("design.json", "model.so", "test.npz"),
}


@pytest.mark.parametrize("stage", LATER)
def test_what_a_kill_behind_a_later_stage_leaves_is_finished_to_the_same_end(copied: SmallJob, stage, caplog):
    expected = read_report(copied.run_dir)
    kept = {"run.json", "exits.json", "branches.npz", "calibrate.npz", "latency.json", "backbone.so", *LATER[stage]}
    for path in copied.run_dir.iterdir():
        if path.name not in kept:
            path.unlink()
    for name in ("model.so", "test.npz", "report.json-a1b2c3", "design.json"):
        (copied.run_dir / f".tmp-{name}").write_bytes(b"half a file")
    with caplog.at_level("INFO", logger="hapi_tvm"):
        copied.build()
    assert set(log_lines(caplog)) == {"lower", "tune", "choose", "compile", "front", "verify"} | (
        {"search"} if stage == "measure" else set()
    ) | (set() if stage == "test" else {"test"})
    assert OnDisk(copied).leftovers() == []
    found = read_report(copied.run_dir)
    for same in ("design", "predicted", "splits", "candidates", "verification", "kernels"):
        assert found[same] == expected[same]


def test_a_folder_in_use_is_refused_and_free_when_its_process_ends(copied: SmallJob):
    identity = json.loads((copied.run_dir / "run.json").read_text())["identity"]
    with RunFolder(copied.run_dir, logging.getLogger("hapi_tvm")).open(identity):
        with pytest.raises(RunBusy, match=str(os.getpid())):
            copied.build()
    assert copied.build().path.exists()
