"""Search for fast schedules of kernels, with MetaSchedule, in a database that outlives the run.

Trials are split by weight; a kernel that had its share in an earlier run is left alone. Each candidate
is on disk as soon as it was measured, so a killed run goes on where it was.
"""

from __future__ import annotations

import logging
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tvm.s_tir import meta_schedule as ms

from hapi_tvm import jsonl, tvm_compat
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import KernelDatabase, Scheduled, target_folder
from hapi_tvm.kernels import Kernel, kernel_key, workload
from hapi_tvm.targets import Target
from hapi_tvm.targets.forkserver_builder import remove_library

__all__ = ["Kernel", "Trial", "best_schedules", "kernel_key", "split_trials", "tune"]

logger = logging.getLogger(__name__)
# MetaSchedule reports every step of its search as INFO.
search_logger = logging.getLogger("hapi_tvm.tuning.search")
search_logger.setLevel(logging.WARNING)

# A kernel's own share is small, so a batch seldom holds more; it is built in parallel.
BATCH = 16
# TVM's default population of 512 takes 12 to 28 s of search a round (0.27.0.post1, 2 cores).
POPULATION = 64
# A kernel is done once a batch, of which half or more was new, makes it faster by less than this share.
MINIMUM_GAIN = 0.01
# Times that a wrong schedule gives way to the next best before the kernel falls back to its default.
CHECKS = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate that was tried. median_us is None where it failed; ``done`` of ``total`` in this run."""

    kernel: Kernel
    median_us: float | None
    done: int
    total: int


def split_trials(weights: Sequence[float], trials: int) -> list[int]:
    """Split a budget by weight: at least one each while it lasts, largest first; sums to ``trials``.

    Largest remainders; equal ones go to the earlier kernel. Weights that are all 0 count as equal.
    """
    if not weights:
        return []
    total = sum(weights)
    shares = [weight / total if total > 0 else 1 / len(weights) for weight in weights]
    order = sorted(range(len(shares)), key=lambda index: -shares[index])
    first = set(order[:trials])
    spare = max(0, trials - len(shares))
    exact = [spare * share for share in shares]
    split = [int(value) + (index in first) for index, value in enumerate(exact)]
    by_remainder = sorted(range(len(shares)), key=lambda index: int(exact[index]) - exact[index])
    for index in by_remainder[: trials - sum(split)]:
        split[index] += 1
    return split


def tune(
    kernels: Sequence[Kernel],
    target: Target,
    database_dir: pathlib.Path | str,
    trials: int,
    seed: int,
    on_trial: Callable[[Trial], None] | None = None,
) -> None:
    """Spend up to ``trials`` candidates on ``kernels``; the results are in the database.

    The first trial of a kernel is the target's default schedule, so that tuning never loses to it.
    A candidate that fails to build or run is one lost trial. on_trial: called after each.
    Raises TargetError where this TVM cannot tune.
    """
    if trials <= 0 or not kernels:
        return
    kernels = list({kernel.key: kernel for kernel in kernels}.values())
    folder = target_folder(database_dir, target)
    with jsonl.locked(folder):
        database = KernelDatabase(folder)
        shares = split_trials([kernel.weight for kernel in kernels], trials)
        wanted = [
            0 if database.exhausted(kernel) else max(0, share - len(database.tried(kernel)))
            for kernel, share in zip(kernels, shares, strict=True)
        ]
        if any(wanted):
            tvm_compat.check_versions()
            tvm_compat.import_tensor_intrin()
            session = _Session(target, database, sum(wanted), on_trial)
            for index, (kernel, count) in enumerate(zip(kernels, wanted, strict=True)):
                if count:
                    session.tune_kernel(kernel, count, seed + index + 1)
        _check_numbers(kernels, target, database)


def best_schedules(kernels: Iterable[Kernel], target: Target, database_dir: pathlib.Path | str) -> dict[str, Scheduled]:
    """By kernel key: the fastest schedule on record, else the target's default, else the kernel as it is."""
    folder = target_folder(database_dir, target)
    with jsonl.locked(folder):
        database = KernelDatabase(folder)
        return {kernel.key: database.best(kernel, target) for kernel in kernels}


class _Session:
    """One tuning run: what all kernels of it share."""

    def __init__(
        self,
        target: Target,
        database: KernelDatabase,
        total: int,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self._target = target
        self._database = database
        self._total = total
        self._on_trial = on_trial
        self._done = 0
        self._builder = target.builder()
        self._runner = target.runner()
        self._cost_model = ms.cost_model.XGBModel(num_tuning_cores=1)

    def tune_kernel(self, kernel: Kernel, count: int, seed: int) -> None:
        """Try ``count`` schedules that were not tried before, or as many as the space has.

        Stops for good where a batch brings less than ``MINIMUM_GAIN``.
        """
        tried = self._database.tried(kernel)
        remaining = count - self._try_default(kernel, tried)
        if remaining <= 0:
            return
        context = self._context(kernel, seed)
        spaces = context.generate_design_space()
        context.pre_tuning(1 << 20, BATCH, spaces, self._database.tvm_database, self._cost_model)
        # MetaSchedule proposes nothing twice in a session, but may propose what an earlier one tried.
        for _ in range(remaining + len(tried)):
            candidates = list(context.generate_measure_candidates() or [])
            if not candidates:
                self._database.mark_exhausted(kernel, "the search found no further candidate")
                break
            fresh = self._fresh(candidates, tried, remaining)
            if not fresh:
                continue
            before_s = self._fastest_s(kernel)
            results = self._measure(kernel, fresh)
            if len(fresh) >= BATCH // 2 and self._fastest_s(kernel) > (1 - MINIMUM_GAIN) * before_s:
                reason = f"the last {len(fresh)} candidates brought less than {MINIMUM_GAIN:.0%}"
                self._database.mark_exhausted(kernel, reason)
                break
            context.notify_runner_results(fresh, results)
            self._cost_model.update(context, fresh, results)
            remaining -= len(fresh)
            if remaining <= 0:
                break
        context.post_tuning()

    def _context(self, kernel: Kernel, seed: int) -> ms.TuneContext:
        return ms.TuneContext(
            workload(kernel.func),
            target=self._target.tvm_target,
            space_generator=self._target.space(kernel.func),
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=POPULATION, init_min_unmeasured=BATCH, genetic_num_iters=1
            ),
            task_name=kernel.name,
            rand_state=seed,
            num_threads=1,
            logger=search_logger,
        )

    def _try_default(self, kernel: Kernel, tried: set[str]) -> int:
        """Measure the target's default schedule first. Returns the number of trials spent, 0 or 1."""
        schedule = self._target.default_schedule(workload(kernel.func)["main"])
        if schedule is None:
            return 0
        arguments = ms.arg_info.ArgInfo.from_entry_func(schedule.mod, remove_preproc=True)
        fresh = self._fresh([ms.MeasureCandidate(schedule, arguments)], tried, 1)
        self._measure(kernel, fresh)
        return len(fresh)

    def _fastest_s(self, kernel: Kernel) -> float:
        """Infinite where nothing ran yet."""
        return min((item.median_s for item in self._database.measured(kernel)), default=math.inf)

    @staticmethod
    def _fresh(candidates: list[ms.MeasureCandidate], tried: set[str], limit: int) -> list[ms.MeasureCandidate]:
        """Up to ``limit`` candidates that are not in ``tried``, and adds them to it."""
        fresh = []
        for candidate in candidates:
            key = kernel_key(candidate.sch.mod["main"])
            if key not in tried and len(fresh) < limit:
                tried.add(key)
                fresh.append(candidate)
        return fresh

    def _measure(self, kernel: Kernel, candidates: list[ms.MeasureCandidate]) -> list[ms.runner.RunnerResult]:
        """Build all, then run one after the other; each result is stored before the next candidate runs."""
        target = self._target.tvm_target
        built = self._builder.build([ms.builder.BuilderInput(item.sch.mod, target) for item in candidates])
        results = []
        for candidate, artifact in zip(candidates, built, strict=True):
            result = self._run(candidate, artifact)
            self._store(kernel, candidate, result)
            results.append(result)
        return results

    def _run(self, candidate: ms.MeasureCandidate, artifact: ms.builder.BuilderResult):
        if artifact.error_msg is not None:
            return ms.runner.RunnerResult(None, str(artifact.error_msg))
        path = str(artifact.artifact_path)
        device = str(self._target.tvm_target.kind.name)
        try:
            (future,) = self._runner.run([ms.runner.RunnerInput(path, device, candidate.args_info)])
            return future.result()
        finally:
            remove_library(path)

    def _store(self, kernel: Kernel, candidate: ms.MeasureCandidate, result: ms.runner.RunnerResult) -> None:
        seconds = [float(value) for value in result.run_secs or ()]
        measured = bool(seconds) and max(seconds) < tvm_compat.FAILED_SECONDS
        if measured:
            self._database.add(kernel, candidate, seconds, self._target)
        else:
            reason = str(result.error_msg or "no time came back")
            logger.debug("a candidate of %s failed: %s", kernel.name, reason)
            self._database.reject(kernel, kernel_key(candidate.sch.mod["main"]), reason)
        self._done += 1
        if self._on_trial is not None:
            median_us = sorted(seconds)[len(seconds) // 2] * 1e6 if measured else None
            self._on_trial(Trial(kernel, median_us, self._done, self._total))


def _check_numbers(kernels: Sequence[Kernel], target: Target, database: KernelDatabase) -> None:
    """Compare each kernel's best schedule with the unscheduled kernel, once; reject those that differ."""
    for _ in range(CHECKS):
        best = {kernel.key: database.best(kernel, target) for kernel in kernels}
        unchecked = [
            kernel
            for kernel in kernels
            if best[kernel.key].origin != "plain" and not database.checked(kernel, best[kernel.key].key)
        ]
        if not unchecked:
            return
        found = differences([(kernel.func, best[kernel.key].func) for kernel in unchecked], target)
        for kernel, difference in zip(unchecked, found, strict=True):
            key = best[kernel.key].key
            if difference is None:
                database.mark_checked(kernel, key)
            else:
                logger.warning("schedule %s of kernel %s is dropped: %s", key, kernel.name, difference)
                database.reject(kernel, key, difference)
