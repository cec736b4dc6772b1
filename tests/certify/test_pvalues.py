from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hapi_tvm.certify.counts import Counts
from hapi_tvm.certify.pvalues import LOST, NUISANCE_SHARE, PAIRED, lost_p_value, paired_p_value
from tests.certify.outcomes import all_counts, drawn, probability

TESTS = pytest.mark.parametrize("test", [LOST, PAIRED], ids=["lost", "paired"])
shares = st.floats(0.002, 0.4)


@st.composite
def counts_up_to(draw, most: int = 400) -> Counts:
    samples = draw(st.integers(1, most))
    lost = draw(st.integers(0, samples))
    return Counts(samples, lost, draw(st.integers(0, samples - lost)))


@pytest.mark.parametrize("epsilon", [0.01, 0.25, 0.9])
@pytest.mark.parametrize("samples", [1, 7, 60])
def test_lost_is_the_binomial_sum(samples, epsilon):
    chance = Fraction(epsilon)
    total = Fraction(0)
    for lost in range(samples + 1):
        total += math.comb(samples, lost) * chance**lost * (1 - chance) ** (samples - lost)
        assert lost_p_value(Counts(samples, lost, 0), epsilon, 0.1) == pytest.approx(float(total), rel=1e-9)


def chance_of_net(net: int, samples: int, theta: float, epsilon: float) -> float:
    """P(lost - gained <= net), outcome by outcome, where a share of theta differs and epsilon is lost on balance."""
    lost_share, gained_share = (theta + epsilon) / 2, (theta - epsilon) / 2
    return sum(
        probability(counts, lost_share, gained_share)
        for counts in all_counts(samples)
        if counts.lost - counts.gained <= net
    )


def upper_share(count: int, samples: int, level: float) -> float:
    """The share at which ``count`` or fewer of ``samples`` have the chance ``level``, by bisection."""
    low, high = count / samples, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(math.comb(samples, k) * middle**k * (1 - middle) ** (samples - k) for k in range(count + 1))
        low, high = (middle, high) if tail > level else (low, middle)
    return low


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (2, 1), (0, 2), (1, 3)])
@pytest.mark.parametrize("epsilon", [0.15, 0.25])
def test_paired_is_the_worst_trinomial_sum_over_the_shares_that_are_possible(lost, gained, epsilon):
    samples, delta = 24, 0.2
    reserved = NUISANCE_SHARE * delta
    highest = max(epsilon, upper_share(lost + gained, samples, reserved))
    worst = max(
        chance_of_net(lost - gained, samples, theta, epsilon) for theta in np.linspace(epsilon, highest, 15)
    )
    found = paired_p_value(Counts(samples, lost, gained), epsilon, delta)
    assert found == pytest.approx(worst + reserved, rel=1e-6)


@TESTS
@pytest.mark.parametrize(("epsilon", "delta"), [(0.08, 0.1), (0.2, 0.1), (0.2, 0.02), (0.5, 0.3)])
def test_the_chance_to_pass_at_a_drop_of_epsilon_is_at_most_delta(test, epsilon, delta):
    """By summing every outcome of 48 samples: no simulation, no tolerance. Also where the two differ on all samples."""
    samples = 48
    passing = [counts for counts in all_counts(samples) if test.p_value(counts, epsilon, delta) <= delta]
    assert passing
    for gained_share in np.linspace(0, (1 - epsilon) / 2, 8):
        lost_share = epsilon if test is LOST else epsilon + gained_share
        gained_share = min(gained_share, 1 - lost_share)
        chance = sum(probability(counts, lost_share, gained_share) for counts in passing)
        assert chance <= delta


@TESTS
def test_by_simulation_delta_is_kept_and_nearly_used(test):
    """1,500 draws of 1,500 samples; 0.07 to 0.12 is four standard errors and more around what is expected."""
    random = np.random.default_rng(7)
    epsilon, delta, gained_share = 0.02, 0.1, 0.0 if test is LOST else 0.01
    passed = [
        test.p_value(drawn(random, 1500, epsilon + gained_share, gained_share), epsilon, delta) <= delta
        for _ in range(1500)
    ]
    assert 0.04 < np.mean(passed) < 0.12


@TESTS
@given(counts=counts_up_to(), epsilon=shares, delta=shares)
@settings(max_examples=150, deadline=None)
def test_losing_one_more_never_helps(test, counts, epsilon, delta):
    if counts.lost + counts.gained < counts.samples:
        worse = Counts(counts.samples, counts.lost + 1, counts.gained)
        before, after = (test.p_value(c, epsilon, delta) for c in (counts, worse))
        assert after >= before * (1 - 1e-9)


@TESTS
@given(counts=counts_up_to(), epsilon=shares, more=shares, delta=shares)
@settings(max_examples=150, deadline=None)
def test_a_larger_drop_is_never_harder_to_certify(test, counts, epsilon, more, delta):
    strict, loose = (test.p_value(counts, level, delta) for level in (epsilon, epsilon + more))
    assert loose <= strict * (1 + 1e-9)


@TESTS
@given(counts=counts_up_to(), epsilon=shares, delta=shares, more=shares)
@settings(max_examples=150, deadline=None)
def test_what_passes_at_a_small_risk_passes_at_a_larger(test, counts, epsilon, delta, more):
    if test.p_value(counts, epsilon, delta) <= delta:
        assert test.p_value(counts, epsilon, delta + more) <= delta + more


@TESTS
@given(counts=counts_up_to(100_000), epsilon=shares, delta=shares)
@settings(max_examples=60, deadline=None)
def test_a_p_value_is_a_probability(test, counts, epsilon, delta):
    assert 0 <= test.p_value(counts, epsilon, delta) <= 1


def test_what_was_gained_helps_the_paired_test_alone():
    few, many = Counts(5000, 60, 0), Counts(5000, 60, 30)
    assert lost_p_value(few, 0.01, 0.1) == lost_p_value(many, 0.01, 0.1) > 0.9
    assert paired_p_value(many, 0.01, 0.1) < 0.1 < paired_p_value(few, 0.01, 0.1)


def test_far_tails_are_not_left_out():
    """Of 10,000,000 samples only some thousand numbers of differing ones are summed; the rest counts in full."""
    assert paired_p_value(Counts(10_000_000, 99_000, 0), 0.01, 0.1) == pytest.approx(
        lost_p_value(Counts(10_000_000, 99_000, 0), 0.01, 0.1) + 0.01, abs=0.01
    )
