"""An SLA that nothing meets: the closest design to each limit, against brute force, and a message one can act on."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from brute import designs
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from instances import network, small, tables

from hapi_tvm.errors import InfeasibleSLA
from hapi_tvm.records import DROP_LIMIT, LATENCY_LIMITS, SLA
from hapi_tvm.search import Space, evaluate, search
from hapi_tvm.search.describe import exits_of, limit_needed
from hapi_tvm.search.problem import Problem

METRICS = {limit: metric for metric, limit in LATENCY_LIMITS.items()}


@st.composite
def asked(draw):
    """(tables, SLA, space): two or three limits, each kept by some design and often not by one that keeps the rest."""
    random = draw(st.randoms(use_true_random=False))
    made = small(random.randrange(2**32), samples=random.randrange(5, 60), candidates=3)
    calibration, latency, _ = made
    limits = {}
    for limit in draw(st.sets(st.sampled_from([DROP_LIMIT, *METRICS]), min_size=1, max_size=3)):
        like = evaluate(calibration, latency, [(random.randrange(3), random.randrange(2) / 2)], drop_confidence=0.8)
        tight = random.choice([0.5, 0.9, 1.0])
        if limit == DROP_LIMIT:
            limits[limit] = min(max(tight * like.accuracy_drop_upper, 0.0), 1.0)
        else:
            limits[limit] = max(tight * getattr(like, f"{METRICS[limit]}_us") / 1000, 1e-6)
    return made, SLA(**limits, drop_confidence=0.8, max_exits=2), Space(grid=3, shared=draw(st.booleans()))


def figure(predicted, limit: str) -> float:
    """What stands against a limit, in its unit."""
    if limit == DROP_LIMIT:
        return predicted.accuracy_drop_upper
    return getattr(predicted, f"{METRICS[limit]}_us") / 1000


@settings(max_examples=150, deadline=None, derandomize=True)
@given(asked())
def test_the_closest_to_each_limit_is_brute_forces(drawn):
    (calibration, latency, graph), sla, space = drawn
    try:
        search(calibration, latency, graph, sla, space=space)
    except InfeasibleSLA as error:
        closest = error.closest
    else:
        assume(False)
    problem = Problem.of(calibration, latency, sla, space)
    rows = [evaluate(calibration, latency, exits, drop_confidence=0.8) for exits in designs(problem)]
    limits = [limit for limit in (DROP_LIMIT, *METRICS) if getattr(sla, limit) is not None]
    assert set(closest) == set(limits)
    for limit in limits:
        others = [other for other in limits if other != limit]
        keeping = [row for row in rows if all(figure(row, other) <= getattr(sla, other) for other in others)]
        found = closest[limit].predicted
        field = "accuracy_drop" if limit == DROP_LIMIT else f"{METRICS[limit]}_us"
        least = min(getattr(row, field) for row in keeping or rows)
        # Thresholds off the grid may come closer still.
        assert getattr(found, field) <= least
        if keeping:
            assert all(figure(found, other) <= getattr(sla, other) for other in others)
            assert figure(found, limit) > getattr(sla, limit)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(asked())
def test_a_limit_that_is_said_to_do_does(drawn):
    (calibration, latency, graph), sla, space = drawn
    try:
        search(calibration, latency, graph, sla, space=space)
    except InfeasibleSLA as error:
        message = str(error)
    else:
        assume(False)
    told = message.partition("one of these alone would do: ")[2]
    for name, value in re.findall(r"(\w+)=([\d.e-]+)", told):
        assert float(value) > getattr(sla, name)
        search(calibration, latency, graph, replace(sla, **{name: float(value)}), space=space)


def test_the_message_says_what_each_limit_would_have_to_be():
    calibration, latency, graph = network(1, samples=400, candidates=5)
    whole_ms = evaluate(calibration, latency, ()).mean_us / 1000
    sla = SLA(max_accuracy_drop=0.001, mean_latency_ms=0.3 * whole_ms, drop_confidence=0.5)
    with pytest.raises(InfeasibleSLA) as caught:
        search(calibration, latency, graph, sla, space=Space(grid=8))
    message, closest = str(caught.value), caught.value.closest
    slower, worse = closest["mean_latency_ms"], closest["max_accuracy_drop"]
    assert slower.predicted.accuracy_drop_upper <= 0.001 < worse.predicted.accuracy_drop
    assert worse.predicted.mean_us <= sla.budgets_us["mean"] < slower.predicted.mean_us
    drop, mean_ms = limit_needed(worse, "max_accuracy_drop"), limit_needed(slower, "mean_latency_ms")
    assert message.endswith(f"one of these alone would do: max_accuracy_drop={drop:.4g}, mean_latency_ms={mean_ms:.4g}")
    assert exits_of(slower, calibration.options) != exits_of(worse, calibration.options)


def test_what_is_printed_is_enough():
    """1.23456 us would be rounded to 0.001235 ms, and so would 1.23449 be to less than it takes."""
    for cost_us in (1.23456, 1.234449, 1234.5000001, 0.55, 3.0):
        calibration, latency, graph = tables([[1.0]], [[True, True]], [0.0, cost_us], [2 * cost_us])
        with pytest.raises(InfeasibleSLA) as caught:
            search(calibration, latency, graph, SLA(worst_latency_ms=cost_us / 4000, p95_latency_ms=1e9))
        value = limit_needed(caught.value.closest["worst_latency_ms"], "worst_latency_ms")
        assert float(f"{value:.4g}") == value and cost_us / 1000 <= value <= 1.001 * cost_us / 1000
        assert search(calibration, latency, graph, SLA(worst_latency_ms=value)).exits == ()


def test_nothing_found_in_no_time_is_not_called_impossible():
    made = network(1, samples=50, candidates=4)
    with pytest.raises(InfeasibleSLA, match=r"no design was found in 0 s that has exits at \[1\], max_exits=4"):
        search(*made, SLA(mean_latency_ms=1.0), space=Space(must=frozenset({1})), time_limit_s=0)


def test_an_accuracy_that_an_exit_that_must_be_there_rules_out():
    calibration, latency, graph = tables([[1.0]] * 4, [[False, True]] * 4, [1, 1], [1])
    with pytest.raises(InfeasibleSLA) as caught:
        search(calibration, latency, graph, SLA(max_accuracy_drop=0.0), space=Space(must=frozenset({0})))
    assert str(caught.value) == (
        "no design meets the accuracy limit within max_accuracy_drop=0; the nearest takes 1 accuracy drop (exit_00 "
        "only): lift a limit of the space, or allow a larger accuracy drop"
    )
    assert caught.value.closest["max_accuracy_drop"] == caught.value.nearest
