"""The evaluator against a loop over samples, and against METHOD.md's repetition vector."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from instances import network, random_exits, small, tables

from hapi_tvm.errors import RecordError
from hapi_tvm.search import evaluate


def by_hand(calibration, latency, exits):
    """(correct, lost, gained, cost of each sample), one sample after the other."""
    segment_us, branch_us = latency.segment_us, latency.branch_us
    correct = lost = gained = 0
    costs_us = []
    for n in range(len(calibration.label)):
        cost_us, reached, answer = 0.0, 0, calibration.prediction[n, -1]
        for option, threshold in exits:
            candidate = calibration.options[option].candidate
            cost_us += sum(segment_us[reached : candidate + 1]) + branch_us[option]
            reached = candidate + 1
            if float(calibration.confidence[n, option]) >= threshold:
                answer = calibration.prediction[n, option]
                break
        else:
            cost_us += sum(segment_us[reached:])
        right, backbone_right = (x == calibration.label[n] for x in (answer, calibration.prediction[n, -1]))
        correct += right
        lost += backbone_right and not right
        gained += right and not backbone_right
        costs_us.append(cost_us)
    return correct, lost, gained, sorted(costs_us)


@pytest.mark.parametrize("seed", range(60))
def test_equals_a_loop_over_samples(seed):
    random = np.random.default_rng(seed)
    samples = int(random.integers(1, 90))
    calibration, latency, _ = small(seed, samples=samples, candidates=int(random.integers(0, 6)), kinds=2)
    exits = random_exits(seed, calibration, most=4)
    predicted = evaluate(calibration, latency, exits, drop_confidence=0.9)
    correct, lost, gained, costs_us = by_hand(calibration, latency, exits)
    drop = (lost - gained) / samples
    variance = max((lost + gained) / samples - drop**2, 0.0)

    assert predicted.accuracy == correct / samples
    assert predicted.accuracy_drop == drop
    assert predicted.accuracy_drop_upper == pytest.approx(drop + 1.2815515655 * math.sqrt(variance / samples))
    assert predicted.mean_us == pytest.approx(sum(costs_us) / samples)
    for percent in (50, 95, 99):
        rank = -(-percent * samples // 100)
        assert getattr(predicted, f"p{percent}_us") == pytest.approx(costs_us[rank - 1])
    assert predicted.worst_us == pytest.approx(
        sum(latency.segment_us) + sum(latency.branch_us[o] for o, _ in exits)
    )
    assert sum(predicted.exit_rates) == pytest.approx(1.0)
    assert len(predicted.exit_rates) == len(exits) + 1


@pytest.mark.parametrize("seed", range(10))
def test_mean_follows_from_the_repetition_vector(seed):
    """Solve G r = 0 for the rates, segment 0 entered by everyone; then mean = sum of rate times cost."""
    calibration, latency, _ = network(seed, samples=300, candidates=6)
    exits = random_exits(seed, calibration, most=4)
    predicted = evaluate(calibration, latency, exits)
    leaves_behind = dict(
        zip((calibration.options[o].candidate for o, _ in exits), predicted.exit_rates, strict=False)
    )

    segments = len(latency.segments)
    passing = np.ones(segments)
    arriving = 1.0
    for candidate in range(segments - 1):
        leaving = leaves_behind.get(candidate, 0.0)
        passing[candidate] = 1 - leaving / arriving if arriving else 0.0
        arriving -= leaving
    topology = np.eye(segments)
    topology[np.arange(1, segments), np.arange(segments - 1)] = -passing[:-1]
    rate = np.linalg.solve(topology, np.eye(segments)[0])

    mean_us = rate @ latency.segment_us
    mean_us += sum(
        rate[calibration.options[option].candidate] * latency.branch_us[option] for option, _ in exits
    )
    assert mean_us == pytest.approx(predicted.mean_us)


def test_percentile_is_the_smallest_cost_that_covers_the_share():
    """95 of 100 samples leave early: the 95th percentile is the early cost, the 99th is not."""
    confidence = np.where(np.arange(100) < 95, 1.0, 0.0)[:, None]
    calibration, latency, _ = tables(confidence, np.ones((100, 2)), [10.0, 90.0], [1.0])
    predicted = evaluate(calibration, latency, [(0, 1.0)])
    assert (predicted.p50_us, predicted.p95_us, predicted.p99_us) == (11.0, 11.0, 101.0)


def test_a_confidence_at_the_threshold_fires():
    calibration, latency, _ = tables([[0.3], [0.3]], np.ones((2, 2)), [1.0, 1.0], [0.0])
    at = float(np.float32(0.3))
    above = float(np.nextafter(np.float32(0.3), np.float32(1)))
    assert evaluate(calibration, latency, [(0, at)]).exit_rates == (1.0, 0.0)
    assert evaluate(calibration, latency, [(0, above)]).exit_rates == (0.0, 1.0)


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ([(0, 0.7)], r"exits\[0\] has threshold 0.7, which float32 does not hold.*0.69999998"),
        ([(0, 1.5)], r"exits\[0\] has threshold 1.5; it must lie in \[0, 1\]"),
        ([(0, math.nan)], r"exits\[0\] has threshold nan"),
        ([(9, 0.5)], r"exits\[0\] names option 9; there are 6"),
        ([(-1, 0.5)], r"exits\[0\] names option -1"),
        ([(2, 0.5), (0, 0.5)], r"exits\[1\] is at candidate 0 behind one at candidate 1"),
        ([(2, 0.5), (3, 0.5)], r"exits\[1\] is at candidate 1 behind one at candidate 1"),
    ],
)
def test_exits_that_are_no_design(exits, message):
    calibration, latency, _ = small(0, samples=5, candidates=3, kinds=2)
    with pytest.raises(RecordError, match=message):
        evaluate(calibration, latency, exits)


def test_tables_that_contradict_each_other():
    calibration, latency, _ = small(0, samples=5, candidates=3)
    other = small(0, samples=5, candidates=2)[1]
    with pytest.raises(
        RecordError, match=r"CalibrationTable.options and LatencyTable.options differ in length \(3"
    ):
        evaluate(calibration, other, [])
    with pytest.raises(RecordError, match=r"options\[1\] is at candidate 1; LatencyTable has 2 segments"):
        evaluate(calibration, replace(latency, segments=latency.segments[:2]), [])
    with pytest.raises(RecordError, match="float64; the compiled module compares float32"):
        evaluate(replace(calibration, confidence=calibration.confidence.astype(np.float64)), latency, [])
    with pytest.raises(RecordError, match=r"LatencyTable.segment_us\[\d\] = inf"):
        evaluate(calibration, replace(latency, scale=1e308, call_us=1e9), [])
    with pytest.raises(RecordError, match="beyond what 64-bit picoseconds hold"):
        evaluate(calibration, replace(latency, scale=1e12), [])
