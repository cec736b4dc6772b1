"""The search for one kernel: what to try next, and when to stop."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from tvm.s_tir import meta_schedule as ms

from hapi_tvm import tvm_compat
from hapi_tvm.kernel_database import KernelDatabase
from hapi_tvm.kernels import Kernel, kernel_key, workload
from hapi_tvm.targets import Target

__all__ = ["BATCH", "KernelSearch", "seconds_of"]

logger = logging.getLogger(__name__)
# MetaSchedule reports every step of its search as INFO.
search_logger = logging.getLogger("hapi_tvm.tuning.search")
search_logger.setLevel(logging.WARNING)

# A kernel's own share is small, so a batch seldom holds more.
BATCH = 16
# Until something has run, a batch is this small, and once it has failed too the search ends.
FIRST_BATCH = 4
# The default schedule gets a second chance: a machine under load can make a compiler run out of time.
DEFAULT_ATTEMPTS = 2
# TVM's default population of 512 takes 12 to 28 s of search a round (0.27.0.post1, 2 cores).
POPULATION = 64
# A kernel is done once a batch, of which half or more was new, makes it faster by less than this share.
MINIMUM_GAIN = 0.01


class KernelSearch:
    """Proposes schedules of one kernel that were not tried before: the target's default first, then
    what MetaSchedule finds. ``propose`` and ``learn`` take turns until ``propose`` returns nothing.

    count: most candidates. ``stopped`` says why nothing more needs to be tried, ever. An error in a rule or in
    the search ends the search, with a warning.
    """

    def __init__(self, kernel: Kernel, count: int, seed: int, target: Target, database: KernelDatabase):
        self.kernel = kernel
        self.stopped: str | None = None
        self._remaining = count
        self._seed = seed
        self._target = target
        self._database = database
        self._tried = database.tried(kernel)
        self._default_attempts = 0
        self._default: ms.MeasureCandidate | None = None
        self._context: ms.TuneContext | None = None
        self._before_s = math.inf
        self._done = False
        self._failures: list[str] = []
        self._count = count

    def propose(self, cost_model: ms.cost_model.PyCostModel) -> list[ms.MeasureCandidate]:
        """What to measure next; empty when the search is over."""
        if self._done or self._remaining <= 0:
            return self._finish()
        try:
            return self._next_default() or self._search(cost_model) or self._finish()
        # A rule's mistake surfaces as any type that TVM or the rule raises.
        except Exception as error:
            logger.warning(
                "the search for kernel %s ends, what it has serves: %s: %s",
                self.kernel.name,
                type(error).__name__,
                str(error).strip(),
            )
            return self._finish()

    def learn(
        self,
        candidates: Sequence[ms.MeasureCandidate],
        results: Sequence[ms.runner.RunnerResult],
        cost_model: ms.cost_model.PyCostModel,
    ) -> list[tuple[str, str]]:
        """Take in what became of the last proposal; those that ran are in the database already.

        Returns the keys of the schedules to drop, with the reason of each.
        """
        failed = [
            (kernel_key(candidate.sch.mod["main"]), str(result.error_msg or "no time came back"))
            for candidate, result in zip(candidates, results, strict=True)
            if not seconds_of(result)
        ]
        if self._default is not None and candidates[0] is self._default:
            if failed and self._default_attempts < DEFAULT_ATTEMPTS:
                return []
            self._default = None
        else:
            self._learn_from_search(candidates, results, cost_model)
        self._remaining -= len(candidates)
        self._failures += [reason for _, reason in failed]
        return failed

    def _next_default(self) -> list[ms.MeasureCandidate]:
        if self._default_attempts == 0:
            schedule = self._default_schedule()
            self._default_attempts = DEFAULT_ATTEMPTS
            if schedule is not None:
                arguments = ms.arg_info.ArgInfo.from_entry_func(schedule.mod, remove_preproc=True)
                fresh = self._fresh([ms.MeasureCandidate(schedule, arguments)], 1)
                if fresh:
                    (self._default,) = fresh
                    self._default_attempts = 1
                    return fresh
        elif self._default is not None:
            self._default_attempts += 1
            return [self._default]
        return []

    def _default_schedule(self):
        try:
            return self._target.default_schedule(workload(self.kernel.func)["main"])
        except Exception:
            return None  # the database, which asks the rule too, says why

    def _search(self, cost_model: ms.cost_model.PyCostModel) -> list[ms.MeasureCandidate]:
        if self._context is None:
            context = self._new_context()
            spaces = context.generate_design_space()
            context.pre_tuning(1 << 20, BATCH, spaces, self._database.tvm_database, cost_model)
            self._context = context
        limit = min(self._remaining, BATCH if self._fastest_s() < math.inf else FIRST_BATCH)
        # MetaSchedule proposes nothing twice in a session, but may propose what an earlier one tried.
        for _ in range(self._remaining + len(self._tried)):
            candidates = list(self._context.generate_measure_candidates() or [])
            if not candidates:
                self._stop("the search found no further candidate")
                return []
            fresh = self._fresh(candidates, limit)
            if fresh:
                self._before_s = self._fastest_s()
                return fresh
        return []

    def _new_context(self) -> ms.TuneContext:
        return ms.TuneContext(
            workload(self.kernel.func),
            target=self._target.tvm_target,
            space_generator=self._target.space(self.kernel.func),
            search_strategy=ms.search_strategy.EvolutionarySearch(
                population_size=POPULATION, init_min_unmeasured=BATCH, genetic_num_iters=1
            ),
            task_name=self.kernel.name,
            rand_state=self._seed,
            num_threads=1,
            logger=search_logger,
        )

    def _learn_from_search(self, candidates, results, cost_model) -> None:
        if self._fastest_s() == math.inf:
            self._stop(f"all of the first {len(candidates)} candidates failed")
            return
        if len(candidates) >= BATCH // 2 and self._fastest_s() > (1 - MINIMUM_GAIN) * self._before_s:
            self._stop(f"the last {len(candidates)} candidates brought less than {MINIMUM_GAIN:.0%}")
            return
        self._context.notify_runner_results(candidates, results)
        cost_model.update(self._context, candidates, results)

    def _stop(self, reason: str) -> None:
        self._done = True
        self.stopped = reason

    def _finish(self) -> list[ms.MeasureCandidate]:
        if self._context is not None:
            self._context.post_tuning()
            self._context = None
        if self._failures:
            tried = self._count - max(0, self._remaining)
            level = logging.WARNING if self._fastest_s() == math.inf else logging.INFO
            serves = "; its untuned schedule serves" if level == logging.WARNING else ""
            logger.log(
                level,
                "kernel %s: %d of %d candidates failed and are dropped%s: %s",
                self.kernel.name,
                len(self._failures),
                tried,
                serves,
                self._failures[-1],
            )
            self._failures = []
        self._done = True
        return []

    def _fastest_s(self) -> float:
        """Infinite where nothing ran yet."""
        return min((item.median_s for item in self._database.measured(self.kernel)), default=math.inf)

    def _fresh(self, candidates: Sequence[ms.MeasureCandidate], limit: int) -> list[ms.MeasureCandidate]:
        """Up to ``limit`` candidates that were not tried, and counts them as tried."""
        fresh = []
        for candidate in candidates:
            key = kernel_key(candidate.sch.mod["main"])
            if key not in self._tried and len(fresh) < limit:
                self._tried.add(key)
                fresh.append(candidate)
        return fresh


def seconds_of(result: ms.runner.RunnerResult) -> list[float]:
    """Its repeats; empty where the candidate failed."""
    seconds = [float(value) for value in result.run_secs or ()]
    return seconds if seconds and max(seconds) < tvm_compat.FAILED_SECONDS else []
