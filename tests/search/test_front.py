from __future__ import annotations

import itertools

import numpy as np
import pytest
from instances import network, small, tables
from test_solver import exits_of

from hapi_tvm.records import SLA
from hapi_tvm.search import Space, evaluate, pareto, search


@pytest.mark.parametrize("seed", range(8))
def test_no_design_is_beaten_and_latency_rises(seed):
    make = network if seed % 2 else small
    calibration, latency, graph = make(seed, samples=200, candidates=5, kinds=2)
    front = pareto(calibration, latency, graph, drop_confidence=0.8, max_exits=3, points=7, space=Space(grid=6))
    assert 1 <= len(front) <= 7
    for left, right in itertools.pairwise(front):
        assert left.predicted.mean_us < right.predicted.mean_us
        assert left.predicted.accuracy < right.predicted.accuracy
    for design in front:
        exits = exits_of(design, calibration)
        assert design.predicted == evaluate(calibration, latency, exits, drop_confidence=0.8)
        assert len(exits) <= 3 and not design.proven_optimal
        assert design.predicted.accuracy_drop_upper <= design.sla.max_accuracy_drop


@pytest.mark.parametrize("seed", range(4))
def test_close_to_the_search_at_the_same_accuracy(seed):
    """At the plain estimate of the drop, the search is free to use what the front used."""
    calibration, latency, graph = network(seed, samples=500, candidates=8)
    space = Space(grid=10)
    front = pareto(calibration, latency, graph, max_exits=3, space=space)
    for max_drop in (0.005, 0.02, 0.05):
        sla = SLA(max_accuracy_drop=max_drop, drop_confidence=0.5, max_exits=3)
        best = search(calibration, latency, graph, sla, space=space)
        within = [d for d in front if d.predicted.accuracy_drop <= max_drop]
        slower = [d for d in within if d.predicted.accuracy >= best.predicted.accuracy]
        assert within
        for design in slower:
            assert design.predicted.mean_us >= 0.97 * best.predicted.mean_us


def test_the_plain_backbone_is_on_it_where_nothing_beats_it():
    right = np.column_stack([np.arange(20) % 2 == 0, np.ones(20)])
    calibration, latency, graph = tables(np.ones((20, 1)), right, [1, 9], [1])
    front = pareto(calibration, latency, graph)
    assert [(d.predicted.mean_us, d.predicted.accuracy) for d in front] == [(2.0, 0.5), (10.0, 1.0)]


def test_same_input_same_answer():
    made = network(3, samples=200, candidates=5)
    first, again = (pareto(*made, space=Space(grid=6), max_exits=3, time_limit_s=300) for _ in range(2))
    assert first == again
