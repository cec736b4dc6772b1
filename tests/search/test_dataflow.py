"""The dataflow graph of a design against linear algebra, and its latency against the evaluator's."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import network, random_exits, small, tables

from hapi_tvm.errors import RecordError
from hapi_tvm.records import SLA
from hapi_tvm.search import Space, evaluate, sdf, search
from hapi_tvm.search.dataflow import Dataflow, dataflow_of
from hapi_tvm.search.describe import design_of
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Instance


@st.composite
def drawn_designs(draw):
    """(instance, exits), the tables full of ties; quantiles beyond the median make odd picoseconds."""
    seed = draw(st.integers(0, 2**32 - 1))
    samples, candidates, kinds = draw(st.integers(1, 90)), draw(st.integers(0, 6)), draw(st.integers(1, 2))
    calibration, latency, _ = small(seed, samples=samples, candidates=candidates, kinds=kinds)
    instance = Instance.from_tables(calibration, latency, latency_quantile=draw(st.sampled_from([0.5, 0.9])))
    return instance, random_exits(seed, calibration, most=candidates)


def flow_of(instance, exits) -> Dataflow:
    return dataflow_of(instance, exits, [f"exit_{option}" for option, _ in exits])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(drawn_designs())
def test_mean_latency_is_the_evaluators_to_the_picosecond(drawn):
    instance, exits = drawn
    flow = flow_of(instance, exits)
    assert flow.mean_ps == Fraction(figures_of(instance, exits).total_ps, instance.samples)
    assert sum(flow.cost_ps) == figures_of(instance, exits).worst_ps
    assert len(flow.actors) == len(set(flow.actors)) == 2 * len(exits) + 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(drawn_designs())
def test_repetitions_balance_every_arc_and_nothing_else_does(drawn):
    flow = flow_of(*drawn)
    repetitions, firings = flow.repetitions, flow.firings
    for row in flow.topology:
        assert sum(entry * rate for entry, rate in zip(row, repetitions, strict=True)) == 0
        assert sum(entry * count for entry, count in zip(row, firings, strict=True)) == 0
    assert math.gcd(*firings) == 1 and [Fraction(count, firings[0]) for count in firings] == list(repetitions)
    if not flow.topology:
        assert repetitions == (1,)
        return
    null_space = scipy.linalg.null_space(np.array(flow.topology, dtype=float))
    assert null_space.shape[1] == 1
    assert (null_space / null_space[0])[:, 0] == pytest.approx([float(rate) for rate in repetitions])


def test_rates_of_a_design_by_hand():
    """Eight samples: two leave at the first exit; of the six others, three at the second."""
    first = [0.9, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    second = [0.0, 0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0]
    calibration, latency, graph = tables(np.column_stack([first, second]), np.ones((8, 3)), [10, 20, 40], [1, 2])
    instance = Instance.from_tables(calibration, latency)
    half = ((0, 0.5), (1, 0.5))
    flow = sdf(
        design_of(instance, graph, SLA(max_accuracy_drop=1.0), half, space="", proven_optimal=False),
        calibration,
        latency,
    )
    assert flow.actors == ("segment_00", "exit_00 (linear)", "segment_01", "exit_01 (linear)", "segment_02")
    assert flow.topology == (
        (1, -1, 0, 0, 0),
        (0, Fraction(3, 4), -1, 0, 0),
        (0, 0, 1, -1, 0),
        (0, 0, 0, Fraction(1, 2), -1),
    )
    assert flow.repetitions == (1, 1, Fraction(3, 4), Fraction(3, 4), Fraction(3, 8))
    assert flow.firings == (8, 8, 6, 6, 3)
    assert flow.mean_us == 10 + 1 + 0.75 * (20 + 2) + 0.375 * 40
    assert str(flow).splitlines() == [
        "dataflow graph, rates counted on 8 samples",
        "    actor             repetitions         firings  cost us",
        "r1  segment_00             1.0000               8   10.000",
        "r2  exit_00 (linear)       1.0000               8    1.000",
        "r3  segment_01             0.7500  = 3/4        6   20.000",
        "r4  exit_01 (linear)       0.7500  = 3/4        6    2.000",
        "r5  segment_02             0.3750  = 3/8        3   40.000",
        "",
        "topology matrix, a row an arc: G r = 0",
        "G         r1    r2  r3   r4  r5",
        "r1 -> r2  1     -1   .    .   .",
        "r2 -> r3  .   0.75  -1    .   .",
        "r3 -> r4  .      .   1   -1   .",
        "r4 -> r5  .      .   .  0.5  -1",
        "",
        "mean latency = sum of repetitions x costs = 42.500 us",
    ]


def test_whoever_nobody_reaches_never_fires():
    calibration, latency, _ = tables(np.ones((5, 2)), np.ones((5, 3)), [1, 1, 1], [1, 1])
    flow = flow_of(Instance.from_tables(calibration, latency), ((0, 0.0), (1, 0.5)))
    assert flow.firings == (1, 1, 0, 0, 0)
    assert flow.mean_us == 2.0


@pytest.mark.parametrize("quantile", [0.5, 0.95])
def test_a_design_that_was_searched_is_seen_as_it_was_planned(quantile):
    calibration, latency, graph = network(1, samples=1000, candidates=10)
    sla = SLA(max_accuracy_drop=0.02, max_exits=3, latency_quantile=quantile)
    design = search(calibration, latency, graph, sla, space=Space(grid=8))
    flow = sdf(design, calibration, latency)
    assert len(design.exits) > 1
    assert flow.mean_us == design.predicted.mean_us
    assert flow.to_json()["mean_us"] == flow.mean_us
    plain = sdf(replace(design, exits=()), calibration, latency)
    assert plain.actors == ("segment_00",) and plain.topology == ()
    assert plain.mean_us == evaluate(calibration, latency, (), latency_quantile=quantile).mean_us


def test_a_design_of_other_tables():
    calibration, latency, graph = network(1, samples=100, candidates=4)
    design = search(calibration, latency, graph, SLA(max_accuracy_drop=0.1), space=Space(grid=4, must=frozenset({3})))
    other, costs, _ = network(1, samples=100, candidates=3)
    with pytest.raises(RecordError, match=r"Design\.exits\[\d\] is exit_03, a branch of kind .* which the tables lack"):
        sdf(design, other, costs)
