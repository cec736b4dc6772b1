"""Tables in which everything is alike: the answer is known, and brute force agrees."""

from __future__ import annotations

import math

import numpy as np
import pytest
from brute import best_key, front
from instances import tables

from hapi_tvm.errors import InfeasibleSLA
from hapi_tvm.records import SLA
from hapi_tvm.search import Space, pareto, sdf, search
from hapi_tvm.search.exact import Exact
from hapi_tvm.search.front import grid_front
from hapi_tvm.search.problem import Problem

MIXED = np.array([0.1, 0.4, 0.4, 0.9, 1.0, 0.0, 0.7])[:, None] * np.array([1.0, 0.9, 1.0])
SLOW_MS = 1.0

DEGENERATE = {
    "every exit is perfect": tables(MIXED, np.ones((7, 4)), [1, 1, 1, 7], [3, 1, 1]),
    "every exit is useless": tables(MIXED, [[0, 0, 0, 1]] * 7, [1, 1, 1, 7], [3, 1, 1]),
    "nobody is ever right": tables(MIXED, np.zeros((7, 4)), [1, 1, 1, 7], [3, 1, 1]),
    "only the exits are right": tables(MIXED, [[1, 1, 1, 0]] * 7, [1, 1, 1, 7], [3, 1, 1]),
    "everyone is certain": tables(np.ones((7, 3)), [[0, 1, 1, 1]] * 7, [1, 1, 1, 7], [3, 1, 1]),
    "nobody is certain": tables(np.zeros((7, 3)), [[0, 1, 1, 1]] * 7, [1, 1, 1, 7], [3, 1, 1]),
    "all confidences are equal": tables(np.full((7, 3), 0.5), np.ones((7, 4)), [1] * 4, [1] * 3),
    "all costs are equal": tables(MIXED, MIXED.repeat([1, 1, 2], axis=1) > 0.3, [1] * 4, [1] * 3),
    "nothing costs anything": tables(MIXED, MIXED.repeat([1, 1, 2], axis=1) > 0.3, [0] * 4, [0] * 3),
    "ties everywhere": tables(np.full((7, 3), 0.5), np.ones((7, 4)), [0] * 4, [0] * 3),
    "branches cost more than they save": tables(MIXED, np.ones((7, 4)), [1] * 4, [50] * 3),
    "one sample": tables([[0.2, 0.6, 0.4]], [[0, 1, 1, 1]], [1, 1, 1, 7], [3, 1, 1]),
    "one candidate": tables(MIXED[:, :1], MIXED[:, :1].repeat(2, axis=1) > 0.3, [1, 7], [1]),
    "no candidate": tables(np.empty((7, 0)), np.ones((7, 1)), [4.0], []),
}
SLAS = {
    "no loss": SLA(max_accuracy_drop=0.0),
    "some loss": SLA(max_accuracy_drop=0.3, drop_confidence=0.5),
    "any loss": SLA(max_accuracy_drop=1.0),
    "enough time": SLA(mean_latency_ms=SLOW_MS),
    "little time": SLA(mean_latency_ms=0.005),
    "deadline": SLA(deadline_ms=0.006),
    "percentiles": SLA(p95_latency_ms=0.008, p99_latency_ms=0.009, max_exits=2),
    "worst, no exits": SLA(worst_latency_ms=SLOW_MS, max_exits=0),
}


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("sla", SLAS.values(), ids=list(SLAS))
@pytest.mark.parametrize("made", DEGENERATE.values(), ids=list(DEGENERATE))
def test_equals_brute_force(made, sla, shared):
    calibration, latency, graph = made
    problem = Problem.of(calibration, latency, sla, Space(grid=7, shared=shared))
    outcome, best = Exact(polish=False).solve(problem, seconds=math.inf), best_key(problem)
    assert outcome.proven and outcome.key == best
    if best is None:
        with pytest.raises(InfeasibleSLA) as caught:
            search(calibration, latency, graph, sla, space=problem.space)
        assert caught.value.nearest is not None and set(caught.value.closest) == set(problem.objective.limits)
        return
    design = search(calibration, latency, graph, sla, space=problem.space)
    assert design.proven_optimal
    assert sdf(design, calibration, latency).mean_us == design.predicted.mean_us
    found = grid_front(problem)
    assert [(total_ps, drop, len(exits)) for total_ps, drop, exits in found.points] == front(problem)


def answer(name: str, sla: SLA):
    return search(*DEGENERATE[name], sla)


def test_perfect_exits_send_everyone_out_at_the_cheapest():
    """exit_00 costs 1 + 3, exit_01 costs 2 + 1: everyone leaves at exit_01, and its least confidence is 0."""
    design = answer("every exit is perfect", SLA(max_accuracy_drop=0.0))
    assert [(placed.name, placed.threshold) for placed in design.exits] == [("exit_01", 0.0)]
    assert (design.predicted.mean_us, design.predicted.accuracy) == (3.0, 1.0)


@pytest.mark.parametrize("sla", [SLA(max_accuracy_drop=0.0), SLA(mean_latency_ms=SLOW_MS)])
def test_useless_exits_stay_out(sla):
    for name in ("every exit is useless", "ties everywhere", "no candidate"):
        design = answer(name, sla)
        assert design.exits == () and design.predicted.exit_rates == (1.0,)
    assert answer("branches cost more than they save", SLA(max_accuracy_drop=1.0)).exits == ()


def test_exits_better_than_the_backbone_gain_accuracy():
    design = answer("only the exits are right", SLA(mean_latency_ms=SLOW_MS))
    assert design.predicted.accuracy == 1.0 and design.predicted.accuracy_drop == -1.0


def test_where_nobody_is_right_nothing_is_lost():
    design = answer("nobody is ever right", SLA(max_accuracy_drop=0.0))
    assert (design.predicted.mean_us, design.predicted.accuracy) == (3.0, 0.0)
    assert design.predicted.accuracy_drop_upper == 0.0


def test_a_front_of_one_point():
    for name in ("no candidate", "every exit is perfect", "nothing costs anything"):
        assert len(pareto(*DEGENERATE[name])) == 1
    assert pareto(*DEGENERATE["no candidate"])[0].predicted.mean_us == 4.0
