from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from instances import network, small, tables

from hapi_tvm.errors import InfeasibleSLA, RecordError
from hapi_tvm.records import SLA, Design
from hapi_tvm.search import Space, evaluate, search


def exits_of(design: Design, calibration) -> list[tuple[int, float]]:
    index = {(option.candidate, option.kind): i for i, option in enumerate(calibration.options)}
    return [(index[placed.candidate, placed.kind], placed.threshold) for placed in design.exits]


@pytest.mark.parametrize(
    "sla",
    [
        SLA(max_accuracy_drop=0.01, max_exits=3),
        SLA(max_accuracy_drop=0.02, drop_confidence=0.5, worst_latency_ms=0.4, max_exits=3),
        SLA(mean_latency_ms=0.2, max_exits=3),
        SLA(deadline_ms=0.25, max_exits=2),
        SLA(max_accuracy_drop=0.01, latency_quantile=0.9, max_exits=2),
        SLA(p95_latency_ms=0.35, max_exits=2),
        SLA(p99_latency_ms=0.36, mean_latency_ms=0.3, max_exits=1),
    ],
)
def test_a_design_keeps_its_sla_and_predicts_what_the_evaluator_says(sla):
    calibration, latency, graph = network(1, samples=1000, candidates=10)
    design = search(calibration, latency, graph, sla, space=Space(grid=12), time_limit_s=300)
    exits = exits_of(design, calibration)
    assert design.predicted == evaluate(
        calibration, latency, exits, drop_confidence=sla.drop_confidence, latency_quantile=sla.latency_quantile
    )
    assert design.sla == sla and design.proven_optimal and len(design.exits) <= sla.max_exits
    for metric, budget_us in sla.budgets_us.items():
        assert getattr(design.predicted, f"{metric}_us") <= budget_us
    if sla.max_accuracy_drop is not None:
        assert design.predicted.accuracy_drop_upper <= sla.max_accuracy_drop
    for placed in design.exits:
        assert placed.name == graph.candidates[placed.candidate].name
        assert placed.flops_share == graph.candidates[placed.candidate].flops_share
        assert float(np.float32(placed.threshold)) == placed.threshold
    assert design.space == (
        f"up to {sla.max_exits} exits of 10 candidates x 2 kinds, a threshold of 12 quantiles each: searched in full; "
        "then thresholds off the grid by local search"
    )


def test_early_exits_pay_on_a_likely_network():
    calibration, latency, graph = network(1, samples=1000, candidates=10)
    whole = evaluate(calibration, latency, [])
    design = search(calibration, latency, graph, SLA(max_accuracy_drop=0.02, max_exits=3), space=Space(grid=12))
    assert design.predicted.mean_us < 0.8 * whole.mean_us


def test_perfect_exits_send_everyone_out_at_the_cheapest():
    calibration, latency, graph = tables(np.ones((50, 3)), np.ones((50, 4)), [1, 1, 1, 7], [3, 1, 1])
    design = search(calibration, latency, graph, SLA(max_accuracy_drop=0.0))
    assert [placed.name for placed in design.exits] == ["exit_01"]
    assert design.predicted.mean_us == 3.0 and design.predicted.accuracy == 1.0


@pytest.mark.parametrize("sla", [SLA(max_accuracy_drop=0.0), SLA(mean_latency_ms=1.0), SLA(worst_latency_ms=0.01)])
def test_useless_exits_stay_out(sla):
    right = np.column_stack([np.zeros((50, 3)), np.ones(50)])
    calibration, latency, graph = tables(np.ones((50, 3)), right, [1, 1, 1, 7], [3, 1, 1])
    design = search(calibration, latency, graph, sla)
    assert design.exits == () and design.proven_optimal
    assert design.predicted.exit_rates == (1.0,)


def test_exits_that_cost_more_than_they_save_stay_out():
    calibration, latency, graph = tables(np.ones((50, 1)), np.ones((50, 2)), [1, 5], [5])
    assert search(calibration, latency, graph, SLA(max_accuracy_drop=0.1)).exits == ()


@pytest.mark.parametrize("right", [True, False])
def test_one_sample(right):
    calibration, latency, graph = tables([[0.5]], [[right, True]], [1, 5], [1])
    design = search(calibration, latency, graph, SLA(max_accuracy_drop=0.5))
    assert design.predicted.mean_us == (2.0 if right else 6.0)


def test_ties_everywhere_take_the_fewest_exits():
    calibration, latency, graph = tables(np.full((20, 4), 0.5), np.ones((20, 5)), [0] * 5, [0] * 4)
    for sla in (SLA(max_accuracy_drop=0.0), SLA(mean_latency_ms=1.0)):
        assert search(calibration, latency, graph, sla).exits == ()


def test_no_candidates_and_no_exits_allowed_leave_the_backbone():
    calibration, latency, graph = tables(np.empty((5, 0)), np.ones((5, 1)), [4.0], [])
    assert search(calibration, latency, graph, SLA(max_accuracy_drop=0.0)).predicted.mean_us == 4.0
    made = small(0, samples=9, candidates=3)
    assert search(*made, SLA(max_accuracy_drop=1.0, max_exits=0)).exits == ()


def test_infeasible_names_the_fastest_design_and_the_way_out():
    confidence = np.ones((10, 2))
    right = np.column_stack([np.zeros(10), np.ones(10), np.ones(10)])
    calibration, latency, graph = tables(confidence, right, [300, 400, 500], [10, 10])
    with pytest.raises(InfeasibleSLA) as caught:
        search(calibration, latency, graph, SLA(mean_latency_ms=0.4, max_accuracy_drop=0.0))
    assert str(caught.value) == (
        "no design meets mean_latency_ms=0.4 within max_accuracy_drop=0; the fastest takes 0.71 ms "
        "(exit_01 only): raise the budget, or allow a larger accuracy drop; one of these alone would do: "
        "max_accuracy_drop=1, mean_latency_ms=0.71"
    )
    assert [placed.name for placed in caught.value.nearest.exits] == ["exit_01"]
    assert caught.value.nearest.predicted.mean_us == 710.0

    with pytest.raises(InfeasibleSLA) as caught:
        search(calibration, latency, graph, SLA(p95_latency_ms=0.2, worst_latency_ms=1.0))
    assert str(caught.value) == (
        "no design meets p95_latency_ms=0.2, worst_latency_ms=1; the nearest takes 0.31 ms p95, 1.21 ms "
        "worst (exit_00 only): raise the budgets"
    )
    closest = caught.value.closest  # no design keeps either of the two: each alone
    assert closest["p95_latency_ms"].predicted.p95_us == 310.0
    assert closest["worst_latency_ms"].predicted.worst_us == 1200.0


def test_per_exit_thresholds_may_meet_what_no_shared_one_meets():
    """Both exits must let their wrong half pass, one below 0.9 and the other below 0.3."""
    half = np.arange(40) % 2 == 0
    confidence = np.column_stack([np.where(half, 0.9, 0.8), np.full(40, 0.3)])
    right = np.column_stack([half, np.ones(40), np.ones(40)])
    calibration, latency, graph = tables(confidence, right, [10, 10, 80], [0, 0])
    sla = SLA(max_accuracy_drop=0.0, mean_latency_ms=0.016)
    design = search(calibration, latency, graph, sla, space=Space(grid=3))
    assert design.predicted.mean_us == 15.0
    assert [placed.threshold for placed in design.exits] == [float(np.float32(t)) for t in (0.9, 0.3)]
    with pytest.raises(InfeasibleSLA, match="mean_latency_ms=0.016"):
        search(calibration, latency, graph, sla, space=Space(grid=3, shared=True))


@pytest.mark.parametrize(
    ("sla", "ticks"),
    [(SLA(max_accuracy_drop=0.02), 12), (SLA(mean_latency_ms=0.2), 12), (SLA(mean_latency_ms=0.02), 2)],
)
def test_out_of_time_it_says_so_and_how_far_off_it_can_be(sla, ticks):
    calibration, latency, graph = network(2, samples=400, candidates=8)
    time_s = itertools.count()
    try:
        design = search(calibration, latency, graph, sla, time_limit_s=ticks, clock=lambda: next(time_s))
    except InfeasibleSLA as error:
        assert "no design was found in time that meets mean_latency_ms=0.02" in str(error)
        assert error.nearest is not None
    else:
        assert not design.proven_optimal and "stopped by the clock, " in design.space
        assert ("% above" if sla.max_accuracy_drop else "points below") in design.space


def test_same_input_same_answer():
    made = network(4, samples=300, candidates=6)
    sla = SLA(max_accuracy_drop=0.03, max_exits=3)
    assert search(*made, sla, time_limit_s=300) == search(*made, sla, time_limit_s=300)


def test_a_graph_of_another_network():
    calibration, latency, graph = small(0, samples=9, candidates=3)
    with pytest.raises(RecordError, match="ExitGraph has 2 candidates and LatencyTable 4 segments"):
        search(calibration, latency, replace(graph, candidates=graph.candidates[:2]), SLA(max_accuracy_drop=0.1))
    with pytest.raises(RecordError, match=r"ExitGraph.options and CalibrationTable.options differ at index 0"):
        search(calibration, latency, replace(graph, kinds=("other",)), SLA(max_accuracy_drop=0.1))
