"""Search for fast schedules of kernels, with MetaSchedule, in a database that outlives the run.

Trials are split by weight; a kernel that had its share in an earlier run is left alone. Each candidate
is on disk as soon as it was measured, so a killed run goes on where it was.
"""

from __future__ import annotations

import logging
import pathlib
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tvm.s_tir import meta_schedule as ms

from hapi_tvm import jsonl, tvm_compat
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import KernelDatabase, Scheduled, target_folder
from hapi_tvm.kernel_search import KernelSearch, seconds_of
from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.targets import Target
from hapi_tvm.timing import results_in_order

__all__ = ["Kernel", "Trial", "best_schedules", "kernel_key", "split_trials", "tune"]

logger = logging.getLogger(__name__)

Proposal = tuple[KernelSearch, list[ms.MeasureCandidate]]

# Candidates that are built together: enough to keep the cores busy, few enough to lose to a kill.
WAVE = 32
# So many failures and no success: the compiler or the machine is at fault, not the candidates.
HOPELESS = 24
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
    A candidate that fails to build or run is one lost trial, and one that computes wrong numbers is dropped,
    as is a rule that raises: ``best_schedules`` has a schedule for every kernel in any case. on_trial:
    called after each. Raises TargetError where this TVM cannot tune.
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
            searches = [
                KernelSearch(kernel, count, seed + index + 1, target, database)
                for index, (kernel, count) in enumerate(zip(kernels, wanted, strict=True))
                if count
            ]
            _Session(target, database, sum(wanted), on_trial).run(searches)
        _check_numbers(kernels, target, database)


def best_schedules(kernels: Iterable[Kernel], target: Target, database_dir: pathlib.Path | str) -> dict[str, Scheduled]:
    """By kernel key: the fastest schedule on record, else the target's default, else the kernel as it is."""
    folder = target_folder(database_dir, target)
    with jsonl.locked(folder):
        database = KernelDatabase(folder)
        return {kernel.key: database.best(kernel, target) for kernel in kernels}


class _Session:
    """One tuning run: what all kernels of it share.

    Kernels take turns in waves: a wave is built in parallel while the next one is searched, and then run,
    one candidate after the other on a machine that does nothing else.
    """

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
        self._succeeded = False
        self._failed: list[tuple[Kernel, str, str]] = []
        self._builder = target.builder()
        self._runner = target.runner()
        self._cost_model = ms.cost_model.XGBModel(num_tuning_cores=1)

    def run(self, searches: Sequence[KernelSearch]) -> None:
        """Try what the searches propose, until they propose nothing more."""
        waiting = deque(searches)
        with ThreadPoolExecutor(max_workers=1) as other_thread:
            wave = self._next_wave(waiting)
            while wave:
                building = other_thread.submit(self._build, wave)
                following = self._next_wave(waiting)
                self._measure(wave, building.result())
                if not self._succeeded and len(self._failed) >= HOPELESS:
                    break
                waiting.extend(search for search, _ in wave)
                wave = following or self._next_wave(waiting)
        self._conclude(searches)

    def _next_wave(self, waiting: deque[KernelSearch]) -> list[Proposal]:
        """The proposals of the searches in front, which leave the queue; ``WAVE`` candidates or a few more."""
        wave: list[Proposal] = []
        while waiting and sum(len(candidates) for _, candidates in wave) < WAVE:
            search = waiting.popleft()
            candidates = search.propose(self._cost_model)
            if candidates:
                wave.append((search, candidates))
        return wave

    def _build(self, wave: Sequence[Proposal]) -> list[ms.builder.BuilderResult]:
        target = self._target.tvm_target
        candidates = (candidate for _, candidates in wave for candidate in candidates)
        return list(self._builder.build([ms.builder.BuilderInput(item.sch.mod, target) for item in candidates]))

    def _measure(self, wave: Sequence[Proposal], built: Sequence[ms.builder.BuilderResult]) -> None:
        """Run the candidates of a wave; each is on disk as soon as its result is here."""
        arguments = [candidate.args_info for _, candidates in wave for candidate in candidates]
        coming = results_in_order(built, arguments, self._runner, self._target)
        for search, candidates in wave:
            results = []
            for candidate in candidates:
                results.append(next(coming))
                if seconds := seconds_of(results[-1]):
                    self._database.add(search.kernel, candidate, seconds, self._target)
                    self._count(search.kernel, statistics.median(seconds) * 1e6)
            for schedule_key, reason in search.learn(candidates, results, self._cost_model):
                self._reject(search.kernel, schedule_key, reason)
                self._count(search.kernel, None)

    def _count(self, kernel: Kernel, median_us: float | None) -> None:
        self._done += 1
        self._succeeded |= median_us is not None
        if self._on_trial is not None:
            self._on_trial(Trial(kernel, median_us, self._done, self._total))

    def _reject(self, kernel: Kernel, schedule_key: str, reason: str) -> None:
        """Note a failure, once anything has run: until then it may be the machine's and not the candidate's."""
        logger.debug("a candidate of %s failed: %s", kernel.name, reason)
        self._failed.append((kernel, schedule_key, reason))
        if self._succeeded:
            self._note_failures()

    def _note_failures(self) -> None:
        for kernel, schedule_key, reason in self._failed:
            self._database.reject(kernel, schedule_key, reason)
        self._failed = []

    def _conclude(self, searches: Sequence[KernelSearch]) -> None:
        if self._succeeded:
            for search in searches:
                if search.stopped is not None:
                    self._database.mark_exhausted(search.kernel, search.stopped)
        elif self._failed:
            logger.warning(
                "tuning ends: none of %d candidates could be built and run on %s, the last: %s; untuned "
                "schedules serve, and the next build tries again",
                self._done,
                self._target.name,
                self._failed[-1][2],
            )


def _check_numbers(kernels: Sequence[Kernel], target: Target, database: KernelDatabase) -> None:
    """Compare each kernel's best schedule with the unscheduled kernel, once; reject those that differ.

    After ``CHECKS`` wrong ones the default's turn comes, and after that one, the kernel's as it is.
    """
    for attempt in range(CHECKS + 2):
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
                continue
            logger.warning("schedule %s of kernel %s is dropped: %s", key, kernel.name, difference)
            database.reject(kernel, key, difference)
            if attempt + 1 >= CHECKS:
                database.reject_searched(kernel, target, f"{CHECKS} others of this kernel were wrong")
