from __future__ import annotations

import numpy as np
import pytest

from hapi_tvm.certify.counts import Counts
from hapi_tvm.certify.gap import gap_between
from hapi_tvm.errors import RecordError
from hapi_tvm.records import CalibrationTable, Option
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Instance
from tests.certify.designs import design_of
from tests.search.instances import network, small


def test_lost_and_gained_are_counted_sample_by_sample():
    backbone = np.array([True, True, False, False, True])
    design = np.array([True, False, True, False, False])
    counts = Counts.of_answers(backbone, design)
    assert counts == Counts(samples=5, lost=2, gained=1)
    assert counts.drop == pytest.approx(backbone.mean() - design.mean())


@pytest.mark.parametrize("seed", range(20))
def test_the_counts_of_a_design_are_the_evaluators(seed):
    """Ties at a threshold are common in these tables."""
    calibration, latency, graph = small(seed, samples=40, candidates=4, kinds=2)
    random = np.random.default_rng(seed)
    candidates = np.flatnonzero(random.random(4) < 0.6)
    exits = [(int(2 * c + random.integers(2)), float(np.float32(random.integers(7) / 6))) for c in candidates]
    figures = figures_of(Instance.from_tables(calibration, latency), exits)
    counts = Counts.of_design(calibration, design_of(calibration, latency, graph, exits))
    assert (counts.lost, counts.gained, counts.samples) == (figures.lost, figures.gained, 40)


def test_the_variance_is_that_of_the_mean_of_the_differences():
    difference = np.repeat([1, -1, 0], [7, 4, 89])
    assert Counts(100, 7, 4).drop_variance == pytest.approx(difference.var() / 100)


def test_the_gap_is_unseen_less_searched():
    searched, unseen = Counts(400, 4, 2), Counts(100, 3, 1)
    gap = gap_between(searched, unseen)
    assert (gap.searched_drop, gap.unseen_drop) == (0.005, 0.02)
    assert gap.gap == pytest.approx(0.015)
    assert gap.standard_error**2 == pytest.approx(searched.drop_variance + unseen.drop_variance)


def test_the_standard_error_of_the_gap_is_what_redraws_spread():
    random = np.random.default_rng(0)
    shares = [0.02, 0.01, 0.97]
    lost, gained, _ = random.multinomial(800, shares, size=(4000, 2)).transpose(2, 1, 0)
    pairs = zip(*(map(Counts, [800] * 4000, lost[i].tolist(), gained[i].tolist()) for i in range(2)), strict=True)
    gaps = [gap_between(*pair) for pair in pairs]
    spread = np.std([gap.gap for gap in gaps])
    assert np.mean([gap.standard_error for gap in gaps]) == pytest.approx(spread, rel=0.05)


def test_an_empty_split_is_refused():
    with pytest.raises(RecordError, match=r"samples=0; give a split with one sample at least"):
        Counts.of_answers(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))


def test_answers_for_different_samples_are_refused():
    with pytest.raises(RecordError, match=r"shapes \(5,\) \(backbone\) and \(4,\) \(design\); give both for the same"):
        Counts.of_answers(np.ones(5, dtype=bool), np.ones(4, dtype=bool))


@pytest.mark.parametrize(("lost", "gained"), [(-1, 0), (0, -1), (6, 5)])
def test_counts_that_cannot_be_are_refused(lost, gained):
    with pytest.raises(RecordError, match=rf"lost={lost} and gained={gained} of samples=10"):
        Counts(10, lost, gained)


def test_an_exit_that_the_table_does_not_know_is_named():
    calibration, latency, graph = network(0, samples=10, candidates=3)
    design = design_of(calibration, latency, graph, [(5, 0.5)])
    fewer = CalibrationTable(
        "other",
        tuple(Option(c, "kind_0") for c in range(3)),
        calibration.confidence[:, :4],
        calibration.prediction[:, :4],
        calibration.label,
    )
    with pytest.raises(RecordError, match=r"split 'other' has no column for a kind_1 exit at candidate 2; answer"):
        Counts.of_design(fewer, design)
