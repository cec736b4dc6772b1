"""Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hapi_tvm.search.genome import Genome
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.strategies.judge import MOST_DESIGNS, Judge
from hapi_tvm.search.strategies.library import extra
from hapi_tvm.search.strategy import Outcome

__all__ = ["TPE"]

MOST_TRIALS = 2000
"""Of one study: the time that a trial takes grows with their number."""


@dataclass(frozen=True, slots=True)
class TPE:
    """A candidate is two parameters: whether it carries an exit, and if so which choice. What a limit is broken by
    is a constraint of the trial. ``startup`` random designs, the plain one first, then the estimator;
    after ``patience`` trials without a better design a new study. Raises MissingPackage without Optuna."""

    startup: int = 48
    patience: int = 400
    most_designs: int = MOST_DESIGNS
    name: ClassVar[str] = "tpe"

    def solve(
        self, problem: Problem, *, seconds: float, seed: int = 0, clock: Callable[[], float] = time.perf_counter
    ) -> Outcome:
        with extra("optuna"):
            import optuna
        judge = Judge(problem, seconds=seconds, clock=clock, most_designs=self.most_designs)
        random = np.random.default_rng(seed)
        while not judge.over():
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.startup, seed=int(random.integers(2**31)), constant_liar=False
            )
            self._study(judge, _quiet_study(optuna, sampler), random)
        return judge.outcome()

    def _study(self, judge: Judge, study, random: np.random.Generator) -> None:
        genome = judge.genome
        for genes in (genome.plain(), *genome.sparse(self.startup - 1, random)):
            study.enqueue_trial(_parameters(genome, genes))
        best, idle = (np.inf, np.inf), 0
        for _ in range(MOST_TRIALS):
            if judge.over() or idle > self.patience:
                return
            trial = study.ask()
            merits = judge.merits(genome.trimmed(_genes(genome, trial)[None], random))
            trial.set_constraint("excess", float(merits.excess[0]))
            study.tell(trial, float(merits.cost[0]))
            now = merits.rank(0)
            best, idle = (now, 0) if now < best else (best, idle + 1)


def _quiet_study(optuna, sampler):
    """A study in memory; Optuna would report its birth."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.create_study(sampler=sampler)
    finally:
        optuna.logging.set_verbosity(level)


def _genes(genome: Genome, trial) -> np.ndarray:
    """int64 [G], as the trial suggests them."""
    genes = np.zeros(len(genome.sizes), dtype=np.int64)
    for gene in np.flatnonzero(genome.sizes > 1).tolist():
        most = int(genome.sizes[gene]) - 1
        if gene < genome.first:
            genes[gene] = trial.suggest_int(f"layer_{gene}", 0, most)
        elif trial.suggest_categorical(f"placed_{gene}", [False, True]):
            genes[gene] = trial.suggest_int(f"choice_{gene}", 1, most)
    return genes


def _parameters(genome: Genome, genes: np.ndarray) -> dict[str, bool | int]:
    """What ``_genes`` would have to be told."""
    parameters: dict[str, bool | int] = {}
    for gene, value in enumerate(genes.tolist()):
        if gene < genome.first:
            parameters[f"layer_{gene}"] = value
        elif genome.sizes[gene] > 1:
            parameters[f"placed_{gene}"] = value > 0
            if value:
                parameters[f"choice_{gene}"] = value
    return parameters
