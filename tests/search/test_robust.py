"""Costs planned at an upper quantile: what is added, and that it holds however the errors are correlated."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from instances import network, random_exits, small

from hapi_tvm.records import SLA
from hapi_tvm.search import Space, evaluate, pareto, search
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import PS_PER_US, Instance

DRAWS = 2000


@pytest.mark.parametrize("samples_in_place", [False, True])
def test_every_row_is_raised_by_its_own_error(samples_in_place):
    calibration, latency, _ = small(0, samples=9, candidates=3, kinds=2)
    if samples_in_place:
        random = np.random.default_rng(0)
        rows = [tuple(row) for row in random.uniform(5, 7, (10, 31)).tolist()]
        latency = replace(latency, segment_samples_us=tuple(rows[:4]), branch_samples_us=tuple(rows[4:]))
    planned = Instance.from_tables(calibration, latency, latency_quantile=0.9)
    z = NormalDist().inv_cdf(0.9)
    assert latency.branch_sigma_us.max() > 0
    branch_us = latency.branch_us + z * latency.branch_sigma_us
    np.testing.assert_allclose(planned.branch_ps / PS_PER_US, branch_us, atol=1e-6)
    segment_us = latency.segment_us + z * latency.segment_sigma_us
    np.testing.assert_allclose(planned.reach_ps / PS_PER_US, np.cumsum(segment_us), atol=1e-5)


def drawn_costs(latency, correlation: float, random) -> tuple[np.ndarray, np.ndarray]:
    """[DRAWS, E + 1] and [DRAWS, C]: normal about the medians, each pair of errors correlated alike."""
    rows = len(latency.segments) + len(latency.branches)
    common, own = random.normal(size=(DRAWS, 1)), random.normal(size=(DRAWS, rows))
    error = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    sigma = np.concatenate([latency.segment_sigma_us, latency.branch_sigma_us])
    cost_us = np.concatenate([latency.segment_us, latency.branch_us]) + error * sigma
    return cost_us[:, : len(latency.segments)], cost_us[:, len(latency.segments) :]


@pytest.mark.parametrize("correlation", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_planned_latency_is_kept_as_often_as_it_says(seed, correlation):
    """Exactly so where all errors are one, more often where they are not: for the mean and every percentile, which
    grow with each cost."""
    calibration, latency, _ = network(seed, samples=200, candidates=5)
    exits = random_exits(seed, calibration, most=3)
    planned = evaluate(calibration, latency, exits, latency_quantile=0.9)
    segments_us, branches_us = drawn_costs(latency, correlation, np.random.default_rng(seed))
    base = Instance.from_tables(calibration, latency)
    kept = {"mean_us": 0, "p95_us": 0, "worst_us": 0}
    for segment_us, branch_us in zip(segments_us, branches_us, strict=True):
        segment_ps = np.rint(segment_us * PS_PER_US).astype(np.int64)
        drawn = replace(
            base, reach_ps=np.cumsum(segment_ps), branch_ps=np.rint(branch_us * PS_PER_US).astype(np.int64)
        )
        figures = figures_of(drawn, exits)
        truth_us = {
            "mean_us": figures.total_ps / PS_PER_US / drawn.samples,
            "p95_us": figures.p95_ps / PS_PER_US,
            "worst_us": figures.worst_ps / PS_PER_US,
        }
        for metric, value_us in truth_us.items():
            kept[metric] += value_us <= getattr(planned, metric)
    allowed = 3 * np.sqrt(0.9 * 0.1 / DRAWS)
    for metric, count in kept.items():
        if correlation == 1.0:
            assert count / DRAWS == pytest.approx(0.9, abs=allowed), metric
        else:
            assert count / DRAWS >= 0.9 - allowed, metric


def test_a_budget_kept_at_the_median_may_be_missed_at_the_quantile():
    """The robust design is another one: it gives up accuracy for a margin in latency."""
    calibration, latency, graph = network(2, samples=400, candidates=6)
    space = Space(grid=8)
    whole_ms = evaluate(calibration, latency, ()).mean_us / 1000
    sla = SLA(mean_latency_ms=0.7 * whole_ms, max_exits=2)
    hopeful = search(calibration, latency, graph, sla, space=space)
    robust = search(calibration, latency, graph, replace(sla, latency_quantile=0.99), space=space)
    budget_us = sla.budgets_us["mean"]
    index = {(option.candidate, option.kind): i for i, option in enumerate(calibration.options)}

    def at_quantile(design):
        exits = [(index[placed.candidate, placed.kind], placed.threshold) for placed in design.exits]
        return evaluate(calibration, latency, exits, latency_quantile=0.99).mean_us

    assert hopeful.predicted.mean_us <= budget_us < at_quantile(hopeful)
    assert at_quantile(robust) == robust.predicted.mean_us <= budget_us
    assert robust.predicted.accuracy < hopeful.predicted.accuracy


def test_the_front_is_planned_at_the_quantile_too():
    calibration, latency, graph = network(2, samples=200, candidates=4)
    plain = [pareto(calibration, latency, graph, latency_quantile=q, max_exits=2)[-1] for q in (0.5, 0.9)]
    assert [design.exits for design in plain][0] == () or plain[0].predicted.mean_us < plain[1].predicted.mean_us
    assert plain[1].sla.latency_quantile == 0.9
    index = {(option.candidate, option.kind): i for i, option in enumerate(calibration.options)}
    exits = [(index[placed.candidate, placed.kind], placed.threshold) for placed in plain[1].exits]
    assert plain[1].predicted.mean_us == evaluate(calibration, latency, exits, latency_quantile=0.9).mean_us
