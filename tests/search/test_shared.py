"""Branch and bound against every design there is, each put through the evaluator."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import network, small, tables

from hapi_tvm.records import SLA
from hapi_tvm.search import shared
from hapi_tvm.search.bitsets import ThresholdBits, count_bits, pack
from hapi_tvm.search.bounds import Bounds
from hapi_tvm.search.evaluator import evaluate, figures_of
from hapi_tvm.search.instance import Instance
from hapi_tvm.search.objective import Figures, Objective
from hapi_tvm.search.shared import search_shared, shared_thresholds
from hapi_tvm.search.tree import Tree

METRICS = ("mean", "p95", "p99", "worst")


def option_sets(calibration, max_exits: int):
    for size in range(max_exits + 1):
        for chosen in itertools.combinations(range(len(calibration.options)), size):
            if len({calibration.options[option].candidate for option in chosen}) == size:
                yield chosen


def designs(calibration, thresholds, max_exits: int):
    for chosen in option_sets(calibration, max_exits):
        for threshold in thresholds if chosen else thresholds[:1]:
            yield tuple((option, float(threshold)) for option in chosen)


def meets(predicted, sla: SLA) -> bool:
    if sla.max_accuracy_drop is not None and predicted.accuracy_drop_upper > sla.max_accuracy_drop:
        return False
    picosecond_us = 1e-6
    return all(
        getattr(predicted, f"{metric}_us") <= us + picosecond_us for metric, us in sla.budgets_us.items()
    )


def rank(predicted, sla: SLA, samples: int, exits: int) -> tuple[int, int, int]:
    right = round(predicted.accuracy * samples)
    total_ps = round(predicted.mean_us * samples * 1e6)
    return (-right, total_ps, exits) if sla.max_accuracy_drop is None else (total_ps, -right, exits)


def brute_force(calibration, latency, sla: SLA, thresholds):
    """The best rank there is, or None."""
    ranks = []
    for exits in designs(calibration, thresholds, sla.max_exits):
        predicted = evaluate(calibration, latency, exits, drop_confidence=sla.drop_confidence)
        if meets(predicted, sla):
            ranks.append(rank(predicted, sla, len(calibration.label), len(exits)))
    return min(ranks, default=None)


@st.composite
def problems(draw):
    """Small tables, and an SLA whose limits are figures of some design: tight, and now and then too tight."""
    kinds = draw(st.integers(1, 2))
    samples = draw(st.integers(1, 100))
    seed = draw(st.integers(0, 2**32 - 1))
    made = small(seed, samples=samples, candidates=draw(st.integers(1, 5 - kinds)), kinds=kinds)
    calibration, latency, _ = made
    random = np.random.default_rng(seed)
    places = list(option_sets(calibration, 2))
    chosen = places[random.integers(len(places))]
    threshold = float(random.choice(calibration.confidence[:, :-1].ravel()))
    confidence = draw(st.sampled_from([0.5, 0.8, 0.95, 0.999]))
    like = evaluate(
        calibration, latency, [(option, threshold) for option in chosen], drop_confidence=confidence
    )
    asked = draw(st.sets(st.sampled_from(["drop", *METRICS]), min_size=1, max_size=3))
    slack = draw(st.sampled_from([0.9, 1.0, 1.0, 1.3]))
    limits = {
        f"{metric}_latency_ms": max(slack * getattr(like, f"{metric}_us") / 1000, 1e-6)
        for metric in METRICS
        if metric in asked
    }
    if "drop" in asked:
        limits["max_accuracy_drop"] = min(max(like.accuracy_drop_upper, 0.0), 1.0)
    return made, SLA(**limits, drop_confidence=confidence, max_exits=draw(st.integers(0, 4)))


def in_full(instance, objective, grid):
    return search_shared(instance, objective, grid=grid, deadline_s=math.inf, clock=time.perf_counter)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(problems(), st.integers(2, 8))
def test_equals_brute_force(problem, grid):
    (calibration, latency, _), sla = problem
    instance = Instance.from_tables(calibration, latency)
    found = in_full(instance, Objective.from_sla(sla, instance.samples), grid)
    best = brute_force(calibration, latency, sla, shared_thresholds(instance, grid))
    assert found.proven
    if best is None:
        assert found.exits is None
    else:
        predicted = evaluate(calibration, latency, found.exits, drop_confidence=sla.drop_confidence)
        assert meets(predicted, sla)
        assert rank(predicted, sla, instance.samples, len(found.exits)) == best


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems())
def test_nearest_equals_brute_force(problem):
    """The least excess over the budgets, among the designs within the accuracy limit."""
    (calibration, latency, _), sla = problem
    instance = Instance.from_tables(calibration, latency)
    objective = Objective.from_sla(sla, instance.samples).nearest()
    found = in_full(instance, objective, 4)
    excesses = []
    for exits in designs(calibration, shared_thresholds(instance, 4), sla.max_exits):
        predicted = evaluate(calibration, latency, exits, drop_confidence=sla.drop_confidence)
        if sla.max_accuracy_drop is None or predicted.accuracy_drop_upper <= sla.max_accuracy_drop:
            spent = (getattr(predicted, f"{metric}_us") / us for metric, us in sla.budgets_us.items())
            excesses.append(max(spent, default=0.0))
    assert objective.excess(figures_of(instance, found.exits)) == pytest.approx(min(excesses))


@pytest.mark.parametrize("seed", range(12))
def test_equals_brute_force_on_a_likely_network(seed):
    """Several words of samples, correlated exits, two kinds: what the random tables do not look like."""
    calibration, latency, _ = network(seed, samples=400, candidates=5)
    instance = Instance.from_tables(calibration, latency)
    whole_ms = evaluate(calibration, latency, []).mean_us / 1000
    for sla in (
        SLA(max_accuracy_drop=0.03, max_exits=3),
        SLA(max_accuracy_drop=0.03, drop_confidence=0.5, worst_latency_ms=1.1 * whole_ms, max_exits=3),
        SLA(mean_latency_ms=0.7 * whole_ms, max_exits=3),
        SLA(p95_latency_ms=0.95 * whole_ms, max_exits=2),
    ):
        found = in_full(instance, Objective.from_sla(sla, instance.samples), 5)
        best = brute_force(calibration, latency, sla, shared_thresholds(instance, 5))
        predicted = evaluate(calibration, latency, found.exits, drop_confidence=sla.drop_confidence)
        assert rank(predicted, sla, instance.samples, len(found.exits)) == best


@pytest.mark.parametrize("seed", range(6))
def test_every_node_of_the_tree_has_the_figures_of_the_evaluator(seed):
    """Low thresholds let 95 and 99 % leave early, so that later exits must not move the percentiles."""
    calibration, latency, _ = network(seed, samples=200, candidates=4)
    instance = Instance.from_tables(calibration, latency)
    for threshold in np.quantile(instance.confidence, [0.02, 0.1, 0.3, 0.8]).astype(np.float32):
        tree = Tree(instance, ThresholdBits.at(instance, threshold))
        prefixes = tree.root()
        for size in (1, 2, 3):
            nodes = tree.expand(prefixes)
            figures = tree.figures(nodes, size)
            paths = np.column_stack([prefixes.path[nodes.parent], nodes.option]).tolist()
            for row, path in enumerate(paths):
                expected = figures_of(instance, [(option, threshold) for option in path])
                for field in fields(Figures):
                    assert getattr(figures, field.name)[row] == getattr(expected, field.name)
            prefixes = tree.descend(prefixes, nodes)


def test_blocks_of_one_row_change_nothing(monkeypatch):
    calibration, latency, _ = network(6, samples=300, candidates=6)
    instance = Instance.from_tables(calibration, latency)
    for sla in (SLA(max_accuracy_drop=0.02), SLA(mean_latency_ms=0.1)):
        objective = Objective.from_sla(sla, instance.samples)
        whole = in_full(instance, objective, 8)
        with monkeypatch.context() as patch:
            patch.setattr(shared, "BLOCK_WORDS", 1)
            assert in_full(instance, objective, 8) == whole


@pytest.mark.parametrize("seed", range(8))
def test_floor_is_below_every_descendant(seed):
    calibration, latency, _ = (
        network(seed, samples=150, candidates=4)
        if seed % 2
        else small(seed, samples=40, candidates=4, kinds=2)
    )
    instance = Instance.from_tables(calibration, latency)
    max_exits = 3
    for threshold in shared_thresholds(instance, 4):
        tree = Tree(instance, ThresholdBits.at(instance, threshold))
        bounds = Bounds(tree)
        root = tree.root()
        first = tree.expand(root)
        for prefixes, nodes, size in ((None, root.nodes, 0), (root, first, 1)):
            floor = bounds.floor(nodes, size, max_exits)
            for row in range(len(nodes.option)):
                above = [] if prefixes is None else [int(nodes.option[row])]
                for chosen in option_sets(calibration, max_exits):
                    if list(chosen[:size]) != above or len(chosen) == size:
                        continue
                    figures = figures_of(instance, tuple((option, float(threshold)) for option in chosen))
                    for name in ("total_ps", "lost", "p95_ps", "p99_ps", "worst_ps", "exits"):
                        assert getattr(floor, name)[row] <= getattr(figures, name)
                    assert floor.gained[row] >= figures.gained


@pytest.mark.parametrize("sla", [SLA(max_accuracy_drop=0.02), SLA(mean_latency_ms=0.2)])
def test_stopped_at_any_moment_it_holds_a_design_and_a_true_floor(sla):
    calibration, latency, _ = network(3, samples=500, candidates=8)
    instance = Instance.from_tables(calibration, latency)
    objective = Objective.from_sla(sla, instance.samples)
    optimum = in_full(instance, objective, 12).best
    proven = []
    for ticks in [*range(0, 24), 40, 80, 100_000]:
        time_s = itertools.count()
        found = search_shared(instance, objective, grid=12, deadline_s=ticks, clock=lambda: next(time_s))  # noqa: B023
        if found.best is not None:
            assert objective.feasible(figures_of(instance, found.exits))
            assert found.floor <= optimum <= found.best
        proven.append(found.proven)
    assert not proven[0] and proven[-1] and proven == sorted(proven)


def test_same_input_same_answer():
    calibration, latency, _ = network(5, samples=300, candidates=8)
    instance = Instance.from_tables(calibration, latency)
    objective = Objective.from_sla(SLA(max_accuracy_drop=0.02), instance.samples)
    assert in_full(instance, objective, 16) == in_full(instance, objective, 16)


def test_equal_latency_is_settled_by_accuracy_then_by_fewer_exits():
    """Two exits that everyone takes at the same cost; the second answers one sample more."""
    right = [[True, True, True], [False, True, True]]
    calibration, latency, _ = tables([[1, 1], [1, 1]], right, [1, 0, 5], [0, 0])
    instance = Instance.from_tables(calibration, latency)
    found = in_full(instance, Objective.from_sla(SLA(max_accuracy_drop=1.0), 2), 4)
    assert [option for option, _ in found.exits] == [1]


def test_thresholds_are_confidences_that_occur():
    calibration, latency, _ = network(0, samples=100, candidates=3)
    instance = Instance.from_tables(calibration, latency)
    thresholds = shared_thresholds(instance, 10)
    assert thresholds.dtype == np.float32 and len(thresholds) == 10
    assert np.isin(thresholds, instance.confidence).all()
    assert thresholds[0] == instance.confidence.min() and thresholds[-1] == instance.confidence.max()


@pytest.mark.parametrize("width", [0, 1, 63, 64, 65, 200])
def test_packed_rows_count_like_the_rows(width):
    rows = np.random.default_rng(width).random((3, width)) < 0.4
    assert pack(rows).shape == (3, -(-width // 64))
    assert count_bits(pack(rows)).tolist() == rows.sum(axis=1).tolist()


def test_counting_holds_beyond_sixteen_bits():
    assert count_bits(pack(np.ones((1, 70_000), dtype=bool))).tolist() == [70_000]


@pytest.mark.parametrize("seed", range(4))
def test_threshold_bits_count_like_the_tables(seed):
    calibration, latency, _ = small(seed, samples=150, candidates=3, kinds=2)
    instance = Instance.from_tables(calibration, latency)
    for threshold in shared_thresholds(instance, 5):
        bits = ThresholdBits.at(instance, threshold)
        fire = instance.confidence >= threshold
        backbone = instance.right[:, -1:]
        gain = fire & instance.right[:, :-1] & ~backbone
        loss = fire & ~instance.right[:, :-1] & backbone
        assert count_bits(bits.fire).tolist() == fire.sum(axis=0).tolist()
        assert count_bits(bits.flip[:, : bits.gain_words]).tolist() == gain.sum(axis=0).tolist()
        assert count_bits(bits.flip[:, bits.gain_words :]).tolist() == loss.sum(axis=0).tolist()
        assert count_bits(bits.everyone) == fire.any(axis=1).sum()
