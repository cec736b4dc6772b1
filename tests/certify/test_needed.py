from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from hapi_tvm.certify.counts import Counts
from hapi_tvm.certify.needed import at_the_same_rate, samples_needed
from hapi_tvm.certify.pvalues import LOST, PAIRED, LossTest

TESTS = pytest.mark.parametrize("test", [LOST, PAIRED], ids=["lost", "paired"])


@TESTS
@given(samples=st.integers(20, 3000), lost=st.integers(0, 30), gained=st.integers(0, 30), epsilon=st.floats(0.005, 0.1))
@settings(max_examples=60, deadline=None)
def test_so_many_samples_at_this_rate_pass_and_one_fewer_does_not(test, samples, lost, gained, epsilon):
    lost = min(lost, samples // 2)
    counts = Counts(samples, lost, min(gained, samples - lost))
    needed = samples_needed(counts, epsilon, 0.1, test)
    if needed is None:
        rate = counts.lost / samples if test is LOST else counts.drop
        assert rate > 0.9 * epsilon
        return
    assert test.p_value(at_the_same_rate(counts, needed), epsilon, 0.1) <= 0.1
    if needed > samples:
        assert test.p_value(at_the_same_rate(counts, needed - 1), epsilon, 0.1) > 0.1


@pytest.mark.parametrize(("counts", "expected"), [((200, 0, 0), 230), ((200, 1, 0), 798), ((400, 3, 0), 3155)])
def test_one_point_at_ninety_per_cent(counts, expected):
    """The binomial figures for observed losses of 0, 0.5 and 0.75 %; the first is ln(0.1) / ln(0.99)."""
    assert samples_needed(Counts(*counts), 0.01, 0.1, LOST) == expected


def hoeffding_bentkus(counts: Counts, epsilon: float, delta: float) -> float:
    """Of (D + 1) / 2, which is bounded; the lesser of Hoeffding's tail and e times the binomial's."""
    n, limit = counts.samples, (1 + epsilon) / 2
    mean = min((1 + counts.drop) / 2, limit)
    divergence = mean * math.log(mean / limit) + (1 - mean) * math.log((1 - mean) / (1 - limit))
    return min(math.exp(-n * divergence), math.e * binom.cdf(math.ceil(n * mean), n, limit))


def test_a_test_that_knows_the_range_alone_needs_fifty_times_as_many():
    """The figures in ``pvalues``."""
    counts = Counts(2000, 25, 15)
    assert samples_needed(counts, 0.01, 0.1, PAIRED) == 2573
    assert samples_needed(counts, 0.01, 0.1, LossTest("bounded", hoeffding_bentkus)) == 128_845


@TESTS
@pytest.mark.parametrize("lost", [10, 30])
def test_at_epsilon_or_above_no_number_is_enough(test, lost):
    assert samples_needed(Counts(1000, lost, 0), 0.01, 0.1, test) is None


def test_rates_are_rounded_against_the_design():
    assert at_the_same_rate(Counts(100, 1, 1), 250) == Counts(250, 3, 2)
