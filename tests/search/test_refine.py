from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from instances import network, small, tables

from hapi_tvm.records import SLA
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.exact import Exact
from hapi_tvm.search.instance import Instance
from hapi_tvm.search.objective import Figures, better
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.refine import refine
from hapi_tvm.search.scan import Others, Scan, falling_order
from hapi_tvm.search.space import Space

FIGURES = ("total_ps", "lost", "gained", "p95_ps", "p99_ps", "worst_ps", "deadline_ps", "exits")


def at(figures: Figures, row: int) -> tuple[int, ...]:
    return tuple(int(getattr(figures, name)[row]) for name in FIGURES)


@pytest.mark.parametrize("seed", range(40))
def test_a_scan_equals_the_evaluator_at_every_threshold(seed):
    random = np.random.default_rng(seed)
    calibration, latency, _ = small(seed, samples=int(random.integers(1, 60)), candidates=4)
    instance = Instance.from_tables(calibration, latency)
    placed = sorted(random.choice(4, size=int(random.integers(0, 4)), replace=False).tolist())
    others = tuple((option, float(random.choice(instance.confidence[:, option]))) for option in placed)
    option = next(option for option in range(4) if option not in placed)

    held = Others.of(instance, others)
    scan = Scan.of(instance, held, option, falling_order(instance)[:, option])
    arrivals = held.leave >= scan.place
    tried = {0.0, *instance.confidence[arrivals, option].tolist()} if arrivals.any() else set()
    assert scan.threshold.tolist() == sorted(tried, reverse=True)
    for row, threshold in enumerate(scan.threshold.tolist()):
        whole = tuple(sorted((*others, (option, threshold))))
        expected = figures_of(instance, whole)
        assert at(scan.figures, row) == tuple(getattr(expected, name) for name in FIGURES)


def slas(whole_ms: float):
    yield SLA(max_accuracy_drop=0.05)
    yield SLA(max_accuracy_drop=0.0, drop_confidence=0.5)
    yield SLA(mean_latency_ms=0.6 * whole_ms)
    yield SLA(p95_latency_ms=0.9 * whole_ms, max_exits=2)
    yield SLA(deadline_ms=0.8 * whole_ms)
    yield SLA(max_accuracy_drop=0.3, mean_latency_ms=0.8 * whole_ms, worst_latency_ms=1.2 * whole_ms)


def best_shared(problem: Problem):
    outcome = Exact(polish=False).solve(problem, seconds=math.inf)
    assert outcome.exits is not None
    return outcome.exits


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("case", range(6))
def test_never_worse_than_the_shared_threshold_and_still_within_the_sla(seed, case):
    calibration, latency, _ = network(seed, samples=300, candidates=5)
    instance = Instance.from_tables(calibration, latency)
    whole_ms = figures_of(instance, ()).worst_ps / 1e9
    problem = Problem.of(calibration, latency, list(slas(whole_ms))[case], Space(grid=8, shared=True))
    shared = best_shared(problem)
    per_exit = replace(problem, space=Space())
    refined = refine(per_exit, shared, falling=falling_order(instance))
    assert per_exit.feasible(refined)
    assert not better(per_exit.key(shared), per_exit.key(refined))
    candidates = [int(instance.candidate[option]) for option, _ in refined]
    assert candidates == sorted(set(candidates)) and len(candidates) <= problem.objective.max_exits


def test_it_finds_thresholds_that_no_shared_one_can_match():
    """Exit 0 is right above 0.6 only, exit 1 is always right and never above 0.4."""
    random = np.random.default_rng(0)
    first = random.uniform(0.2, 1.0, 200)
    confidence = np.column_stack([first, random.uniform(0.1, 0.4, 200)])
    right = np.column_stack([first > 0.6, np.ones(200), np.ones(200)])
    calibration, latency, _ = tables(confidence, right, [10, 20, 70], [1, 1])
    instance = Instance.from_tables(calibration, latency)
    problem = Problem.of(calibration, latency, SLA(max_accuracy_drop=0.0), Space(grid=64, shared=True))
    shared = best_shared(problem)
    refined = refine(replace(problem, space=Space()), shared, falling=falling_order(instance))

    every = [np.unique(instance.confidence[:, option]).tolist() for option in range(2)]
    exits = [((0, a), (1, b)) for a, b in itertools.product(every[0][::5], [every[1][0]])]
    exits += [((0, min(t for t in every[0] if t > 0.6)), (1, every[1][0])), ((1, every[1][0]),), ()]
    figures = [figures_of(instance, design) for design in exits]
    best_ps = min(f.total_ps for f in figures if problem.objective.feasible(f))
    assert figures_of(instance, refined).total_ps == best_ps < figures_of(instance, shared).total_ps


@pytest.mark.parametrize("seed", range(15))
def test_close_to_the_best_per_exit_thresholds(seed):
    """Against every design of up to two exits, each threshold: it may miss the best, but not by far."""
    calibration, latency, _ = network(seed, samples=30, candidates=3, kinds=1)
    instance = Instance.from_tables(calibration, latency)
    sla = SLA(max_accuracy_drop=0.05, drop_confidence=0.5, max_exits=2)
    problem = Problem.of(calibration, latency, sla, Space(grid=8, shared=True))
    refined = refine(replace(problem, space=Space()), best_shared(problem), falling=falling_order(instance))
    every = [[(option, t) for t in np.unique(instance.confidence[:, option]).tolist()] for option in range(3)]
    exits = [(), *((one,) for options in every for one in options)]
    exits += [
        pair for a, b in itertools.combinations(range(3), 2) for pair in itertools.product(every[a], every[b])
    ]
    feasible = [
        f.total_ps for f in (figures_of(instance, design) for design in exits) if problem.objective.feasible(f)
    ]
    assert min(feasible) <= figures_of(instance, refined).total_ps <= 1.1 * min(feasible)


def test_a_spent_clock_leaves_the_design_as_it_was():
    calibration, latency, _ = network(0, samples=100, candidates=3)
    problem = Problem.of(calibration, latency, SLA(max_accuracy_drop=1.0), Space())
    assert refine(problem, (), falling=falling_order(problem.instance), deadline_s=0, clock=lambda: 1.0) == ()
