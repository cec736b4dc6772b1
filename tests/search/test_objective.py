from __future__ import annotations

import itertools

import numpy as np
import pytest

from hapi_tvm.records import SLA
from hapi_tvm.search.objective import Figures, Goal, Objective, best_index, better, drop_upper, rank_count


def figures(total_ps=100, lost=0, gained=0, p95_ps=10, p99_ps=10, worst_ps=10, deadline_ps=10, exits=0) -> Figures:
    return Figures(total_ps, lost, gained, p95_ps, p99_ps, worst_ps, deadline_ps, exits)


def test_drop_upper_covers_the_true_drop_as_often_as_it_says():
    """Draw paired differences with a known mean; the limit must lie above it in about 95 % of the draws."""
    random = np.random.default_rng(0)
    draws = random.multinomial(2000, [0.03, 0.01, 0.96], size=20_000)
    covered = drop_upper(draws[:, 0], draws[:, 1], 2000, 1.6448536) >= 0.02
    assert covered.mean() == pytest.approx(0.95, abs=0.01)


def test_without_z_the_upper_limit_is_the_drop():
    assert drop_upper(50, 0, 5000, 0.0) == 0.01
    assert Objective.from_sla(SLA(max_accuracy_drop=0.01, drop_confidence=0.5), 5000).within_drop(50, 0)
    assert not Objective.from_sla(SLA(max_accuracy_drop=0.01, drop_confidence=0.5), 5000).within_drop(51, 0)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("max_drop", [0.0, 0.1, 0.4])
def test_drop_possible_never_rules_out_what_is_possible(confidence, max_drop):
    samples = 12
    objective = Objective.from_sla(SLA(max_accuracy_drop=max_drop, drop_confidence=confidence), samples)
    ruled_out = 0
    for lost, gained in itertools.product(range(samples + 1), repeat=2):
        for more in range(samples - lost - gained + 1):
            for more_gained in range(more + 1):
                losses, gains = range(lost, lost + more + 1), range(gained, gained + more_gained + 1)
                holds = any(objective.within_drop(*point) for point in itertools.product(losses, gains))
                possible = objective.drop_possible(lost, more, gained, more_gained)
                assert possible or not holds
                ruled_out += not possible
    assert ruled_out > 100


def test_goals_order_lexicographically():
    def ordered(sla, goal_figures):
        objective = Objective.from_sla(sla, samples=10)
        keys = [objective.key(f) for f in goal_figures]
        assert keys == sorted(keys)
        assert all(better(a, b) and not better(b, a) for a, b in itertools.pairwise(keys))

    ordered(
        SLA(max_accuracy_drop=0.5),
        [figures(90, lost=5), figures(100, lost=1), figures(100, lost=2), figures(100, lost=2, exits=1)],
    )
    ordered(
        SLA(mean_latency_ms=1.0),
        [figures(100, gained=1), figures(90), figures(100), figures(100, exits=1), figures(10, lost=1)],
    )


def test_budgets_round_up_to_a_picosecond_and_hold_for_each_metric():
    sla = SLA(
        mean_latency_ms=1e-8, p95_latency_ms=2e-8, p99_latency_ms=3e-8, worst_latency_ms=4e-8, deadline_ms=5e-8
    )
    objective = Objective.from_sla(sla, samples=10)
    assert objective.budgets_ps == {"mean": 10, "p95": 20, "p99": 30, "worst": 40, "deadline": 50}
    assert objective.within_budgets(figures(total_ps=100, p95_ps=20, p99_ps=30, worst_ps=40, deadline_ps=50))
    for name, value in {"total_ps": 101, "p95_ps": 21, "p99_ps": 31, "worst_ps": 41, "deadline_ps": 51}.items():
        assert not objective.within_budgets(figures(**{name: value}))
        assert objective.nearest().within_budgets(figures(**{name: value}))
        assert objective.excess(figures(**{name: value})) > 1
    assert objective.nearest().goal is Goal.NEAREST


def test_best_index_takes_the_first_of_equals():
    key = (np.array([3, 1, 1, 1]), np.array([0, 2, 1, 1]), np.array([0, 0, 0, 0]))
    assert best_index(key, np.array([True, True, True, True])) == 2
    assert best_index(key, np.array([True, True, False, False])) == 1
    assert best_index(key, np.zeros(4, dtype=bool)) is None


def test_rank_count_is_exact():
    assert [rank_count(95, n) for n in (1, 19, 20, 21, 100, 5000)] == [1, 19, 19, 20, 95, 4750]
