"""What is known of kernels on one target: a MetaSchedule JSONDatabase and notes beside it.

workloads.json, records.json   MetaSchedule's own: a line a kernel, a line a candidate that was measured
rejected.jsonl                 candidates that failed to build, to run, or to compute the right numbers
checked.jsonl                  schedules whose numbers were compared with the unscheduled kernel
measurements.jsonl             raw repeats of the schedules in use (hapi_tvm.measuring)

A candidate counts as a trial by its record or by its rejection. Nothing here is a cache of something
else: what was measured is measured.
"""

from __future__ import annotations

import json
import logging
import math
import pathlib
import re
import statistics
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from hapi_tvm import jsonl
from hapi_tvm.kernels import Kernel, kernel_key, workload
from hapi_tvm.targets import Target
from hapi_tvm.tvm_compat import FAILED_SECONDS, private_copy

__all__ = ["KernelDatabase", "Measured", "Scheduled", "default", "plain", "replay", "target_folder"]

logger = logging.getLogger(__name__)

# In place of a schedule's key: nothing more is to be tried for the kernel.
EXHAUSTED = "exhausted"
MARGIN = 0.03


def target_folder(database_dir: pathlib.Path | str, target: Target) -> pathlib.Path:
    """One folder for each target, thread count and TVM version: figures of one never serve another."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", f"{target.name} tvm {tvm.__version__}").strip("-")
    return pathlib.Path(database_dir) / slug


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A kernel's function as it will be compiled. key: of the scheduled function.

    origin: "tuned", "default" (the target's rule without trials) or "plain" (left as it is).
    """

    func: tvm.tirx.PrimFunc
    key: str
    origin: str


def _is_string_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(item, str) for item in value)


def _is_workload(value: Any) -> bool:
    if not _is_string_pair(value):
        return False
    try:
        ms.database.Workload.from_json(value)
    # TVM raises whatever its decoder met: ValueError, TypeError, InternalError, RuntimeError.
    except Exception:
        return False
    return True


def _is_note(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("kernel", "schedule"))


def _repair(workloads_path: pathlib.Path, records_path: pathlib.Path) -> None:
    """Set broken lines of the two files aside, and renumber the records where workloads were lost."""
    old_lines = workloads_path.read_text(errors="replace").split("\n") if workloads_path.exists() else []
    old_lines = [line for line in old_lines if line]
    kept = [json.dumps(value) for value in jsonl.read_repaired(workloads_path, _is_workload)]
    workloads = [ms.database.Workload.from_json(json.loads(line)) for line in kept]
    new_index = _renumbering(old_lines, kept)

    def is_record(value: Any) -> bool:
        if not (isinstance(value, list) and len(value) == 2 and value[0] in new_index):
            return False
        try:
            ms.database.TuningRecord.from_json(value[1], workloads[new_index[value[0]]])
        except Exception:
            return False
        return True

    records = jsonl.read_repaired(records_path, is_record)
    if any(old != new for old, new in new_index.items()):
        jsonl.replace(records_path, (json.dumps([new_index[value[0]], value[1]]) for value in records))


def _renumbering(old_lines: list[str], kept: list[str]) -> dict[int, int]:
    """Line number before the repair -> after it, for the lines that were kept."""
    numbers: dict[int, int] = {}
    for index, line in enumerate(old_lines):
        try:
            same = len(numbers) < len(kept) and json.dumps(json.loads(line)) == kept[len(numbers)]
        except ValueError:
            same = False
        if same:
            numbers[index] = len(numbers)
    return numbers


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate on record: its schedule, and the median of its repeats."""

    scheduled: Scheduled
    median_s: float


class KernelDatabase:
    """Open with the folder locked (``jsonl.locked``); broken lines are set aside at once."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        workloads_path, records_path = folder / "workloads.json", folder / "records.json"
        _repair(workloads_path, records_path)
        self.tvm_database = ms.database.JSONDatabase(str(workloads_path), str(records_path))
        self._rejected: dict[str, set[str]] = {}
        for note in jsonl.read_repaired(folder / "rejected.jsonl", _is_note):
            self._rejected_keys(note["kernel"]).add(note["schedule"])
        checked = jsonl.read_repaired(folder / "checked.jsonl", _is_note)
        self._checked = {(note["kernel"], note["schedule"]) for note in checked}
        self._measured: dict[str, list[Measured]] = {}
        self._defaults: dict[str, Scheduled] = {}

    def measured(self, kernel: Kernel) -> list[Measured]:
        """Every measured candidate of a kernel, the fastest first."""
        if kernel.key not in self._measured:
            module = workload(kernel.func)
            records = []
            if self.tvm_database.has_workload(module):
                records = self.tvm_database.get_top_k(self.tvm_database.commit_workload(module), 1 << 20)
            medians = [statistics.median(map(float, record.run_secs)) for record in records]
            self._measured[kernel.key] = [
                Measured(replay(record), median_s)
                for record, median_s in zip(records, medians, strict=True)
                if median_s < FAILED_SECONDS
            ]
        return sorted(self._measured[kernel.key], key=lambda item: item.median_s)

    def tried(self, kernel: Kernel) -> set[str]:
        """Keys of all schedules tried so far, with or without success."""
        rejected = self._rejected_keys(kernel.key) - {EXHAUSTED}
        return rejected | {item.scheduled.key for item in self.measured(kernel)}

    def exhausted(self, kernel: Kernel) -> bool:
        """True once the search found nothing new to try, or nothing that was worth it."""
        return EXHAUSTED in self._rejected_keys(kernel.key)

    def _rejected_keys(self, kernel_key_: str) -> set[str]:
        return self._rejected.setdefault(kernel_key_, set())

    def add(self, kernel: Kernel, candidate: ms.MeasureCandidate, seconds: list[float], target: Target) -> None:
        """Store a measured candidate, on disk when this returns."""
        known = self.measured(kernel)
        stored = self.tvm_database.commit_workload(workload(kernel.func))
        self.tvm_database.commit_tuning_record(
            ms.database.TuningRecord(candidate.sch.trace, stored, seconds, target.tvm_target, candidate.args_info)
        )
        func = candidate.sch.mod["main"]
        scheduled = Scheduled(func, kernel_key(func), "tuned")
        self._measured[kernel.key] = [*known, Measured(scheduled, statistics.median(seconds))]

    def reject(self, kernel: Kernel, schedule_key: str, reason: str) -> None:
        """Never use this schedule, whether or not it has a record."""
        self._rejected_keys(kernel.key).add(schedule_key)
        note = {"kernel": kernel.key, "schedule": schedule_key, "reason": reason}
        jsonl.append(self._folder / "rejected.jsonl", note)

    def reject_searched(self, kernel: Kernel, target: Target, reason: str) -> None:
        """Reject every schedule on record, save the target's default and those whose numbers were checked."""
        kept = self._rejected_keys(kernel.key) | {self._default(kernel, target).key}
        for item in self.measured(kernel):
            key = item.scheduled.key
            if key not in kept and not self.checked(kernel, key):
                self.reject(kernel, key, reason)

    def mark_exhausted(self, kernel: Kernel, reason: str) -> None:
        self.reject(kernel, EXHAUSTED, reason)

    def checked(self, kernel: Kernel, schedule_key: str) -> bool:
        return (kernel.key, schedule_key) in self._checked

    def mark_checked(self, kernel: Kernel, schedule_key: str) -> None:
        self._checked.add((kernel.key, schedule_key))
        jsonl.append(self._folder / "checked.jsonl", {"kernel": kernel.key, "schedule": schedule_key})

    def _default(self, kernel: Kernel, target: Target) -> Scheduled:
        if kernel.key not in self._defaults:
            self._defaults[kernel.key] = default(kernel, target)
        return self._defaults[kernel.key]

    def best(self, kernel: Kernel, target: Target) -> Scheduled:
        """The fastest schedule on record; without one the target's default, or the kernel as it is.

        The default stays in use unless another beats its measured time by ``MARGIN``: the fastest of many
        noisy candidates is a lucky one, and no better, more often than not.
        """
        rejected = self._rejected_keys(kernel.key)
        usable = [item for item in self.measured(kernel) if item.scheduled.key not in rejected]
        fallback = self._default(kernel, target)
        if fallback.key in rejected:
            fallback = plain(kernel)
        if not usable:
            return fallback
        default_s = next((item.median_s for item in usable if item.scheduled.key == fallback.key), math.inf)
        fastest = usable[0]
        return fastest.scheduled if fastest.median_s < (1 - MARGIN) * default_s else fallback


def plain(kernel: Kernel) -> Scheduled:
    """The kernel as it is."""
    return Scheduled(kernel.func, kernel.key, "plain")


def default(kernel: Kernel, target: Target) -> Scheduled:
    """The target's rule without trials; the kernel as it is where the rule has nothing, or raises."""
    try:
        schedule = target.default_schedule(workload(kernel.func)["main"])
    # A mistake in one rule must not end a build; it surfaces as any type that TVM or the rule raises.
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip()}"
        logger.warning("kernel %s gets no schedule by %s's default rule: %s", kernel.name, target.name, reason)
        return plain(kernel)
    if schedule is None:
        return plain(kernel)
    func = schedule.mod["main"]
    return Scheduled(func, kernel_key(func), "default")


def replay(record: ms.database.TuningRecord) -> Scheduled:
    """The function that a record's trace makes of its workload."""
    schedule = s_tir.Schedule(private_copy(record.workload.mod))
    record.trace.apply_to_schedule(schedule, remove_postproc=False)
    func = schedule.mod["main"]
    return Scheduled(func, kernel_key(func), "tuned")
