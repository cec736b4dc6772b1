from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hapi_tvm.certify import certify
from hapi_tvm.certify.counts import Counts
from hapi_tvm.certify.pvalues import LOST, PAIRED
from hapi_tvm.errors import RecordError, SLAError
from hapi_tvm.records import CalibrationTable, Design, PlacedExit, Prediction
from tests.certify.designs import design_of
from tests.search.instances import tables

SAMPLES = 1000


def table_losing(*lost: int) -> tuple[CalibrationTable, list[Design]]:
    """A split on which the design with one exit at candidate i loses ``lost[i]`` samples, and those designs."""
    right = np.ones((SAMPLES, len(lost) + 1), dtype=bool)
    for exit_index, count in enumerate(lost):
        right[:count, exit_index] = False
    confidence = np.full((SAMPLES, len(lost)), 0.9)
    made = tables(confidence, right, [10.0] * (len(lost) + 1), [1.0] * len(lost))
    designs = [design_of(*made, [(option, 0.5)]) for option in range(len(lost))]
    return made[0], [replace(design, provenance={"calibration": "another split"}) for design in designs]


def passed(certificate) -> list[bool]:
    return [tested.passed for tested in certificate.tests]


def test_the_last_of_the_order_is_certified_if_all_pass():
    table, designs = table_losing(0, 2, 4)
    design, certificate = certify(designs, table, epsilon=0.01, delta=0.1)
    assert design is designs[2] and certificate.certified and passed(certificate) == [True] * 3
    assert certificate.verdict == "certified: an accuracy drop of at most 1 point, with confidence 90 %"
    assert (certificate.epsilon, certificate.delta, certificate.n) == (0.01, 0.1, SAMPLES)
    assert [tested.lost for tested in certificate.tests] == [0, 2, 4]


def test_the_first_failure_ends_the_sequence():
    """The third would pass; it is not even looked at."""
    table, designs = table_losing(0, 9, 0)
    design, certificate = certify(designs, table, epsilon=0.01, delta=0.1)
    assert design is designs[0] and certificate.certified and passed(certificate) == [True, False]
    failed = certificate.tests[1]
    assert certificate.verdict.endswith(f"; a faster design was not: needs about {failed.needs_more:,} more samples")


def test_where_none_passes_the_verdict_says_how_many_samples_are_missing():
    table, designs = table_losing(8, 9)
    design, certificate = certify(designs, table, epsilon=0.01, delta=0.1, test=LOST)
    assert design is designs[0] and not certificate.certified and passed(certificate) == [False]
    more = certificate.tests[0].needs_more
    assert certificate.verdict == f"not certified: needs about {more:,} more samples"
    later = Counts(SAMPLES + more, -(-8 * (SAMPLES + more) // SAMPLES), 0)
    assert LOST.p_value(later, 0.01, 0.1) <= 0.1


def test_a_loss_beyond_epsilon_is_not_a_matter_of_samples():
    table, designs = table_losing(25)
    _, certificate = certify(designs, table, epsilon=0.01, delta=0.1)
    assert certificate.tests[0].needs_more is None
    assert certificate.verdict == (
        "not certified: it loses 2.50 points on 1,000 samples, and more samples would not help"
    )


def test_the_backbone_needs_no_samples():
    table, designs = table_losing(25)
    backbone = replace(designs[0], exits=())
    design, certificate = certify([backbone, *designs], table, epsilon=1e-9, delta=1e-9)
    assert design is backbone and certificate.certified
    assert certificate.verdict == "certified: the design is the plain backbone, which loses nothing"


@pytest.mark.parametrize("test", [LOST, PAIRED], ids=["lost", "paired"])
def test_by_simulation_a_bad_design_is_certified_with_probability_delta_at_most(test):
    """Of four designs in a row the last two lose more than epsilon. 600 redraws, independent losses."""
    random = np.random.default_rng(5)
    prediction = Prediction(0.9, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, (1.0,))
    _, designs = table_losing(0, 0, 0, 0)
    designs = [
        replace(design, predicted=prediction, exits=(PlacedExit("exit", option, "linear", 0.5, 0.5),))
        for option, design in enumerate(designs)
    ]
    epsilon, delta, redraws = 0.03, 0.2, 600
    bad = 0
    for _ in range(redraws):
        right = random.random((300, 5)) >= np.array([0.003, 0.012, 0.031, 0.035, 0.0])
        table, _, _ = tables(np.full((300, 4), 0.9), right, [1.0] * 5, [1.0] * 4)
        design, certificate = certify(designs, table, epsilon=epsilon, delta=delta, test=test)
        bad += certificate.certified and design.exits[0].candidate >= 2
    assert 0.2 * delta < bad / redraws < delta + 3 * (delta * (1 - delta) / redraws) ** 0.5


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, float("nan")])
def test_epsilon_must_be_a_share(epsilon):
    table, designs = table_losing(0)
    with pytest.raises(SLAError, match=rf"epsilon={epsilon} must lie in \(0, 1\); one point of accuracy is 0.01"):
        certify(designs, table, epsilon=epsilon, delta=0.1)


@pytest.mark.parametrize("delta", [0.0, 1.0, 90.0, float("nan")])
def test_delta_must_be_a_risk(delta):
    table, designs = table_losing(0)
    with pytest.raises(SLAError, match=rf"delta={delta} must lie in \(0, 1\); 0.1 is a confidence of 90 %"):
        certify(designs, table, epsilon=0.01, delta=delta)


def test_the_split_of_the_search_certifies_nothing():
    table, designs = table_losing(0, 0)
    made = tables(np.full((SAMPLES, 2), 0.9), np.ones((SAMPLES, 3), dtype=bool), [10.0] * 3, [1.0] * 2)
    with pytest.raises(RecordError, match=r"designs\[1\] was searched on the split 'calibration' itself; hold samples"):
        certify([designs[0], design_of(*made, [(1, 0.5)])], made[0], epsilon=0.01, delta=0.1)


def test_no_design_is_refused():
    table, _ = table_losing(0)
    with pytest.raises(RecordError, match="no design given"):
        certify([], table, epsilon=0.01, delta=0.1)
