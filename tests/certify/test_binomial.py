from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from hapi_tvm.certify import binomial


@pytest.mark.parametrize("samples", [1, 5, 300, 1_000_000])
@pytest.mark.parametrize("share", [1e-4, 0.01, 0.4, 0.99])
def test_the_distribution_is_scipys(samples, share):
    near = round(samples * share)
    counts = np.unique(np.clip([-2, -1, 0, 1, near - 20, near, near + 20, samples - 1, samples, samples + 3], -2, None))
    np.testing.assert_allclose(
        binomial.at_most(counts, samples, share), binom.cdf(counts, samples, share), rtol=1e-9, atol=1e-300
    )


def test_of_no_samples_none_is_sure():
    np.testing.assert_array_equal(binomial.at_most([-1, 0, 1], 0, 0.3), [0, 1, 1])


@pytest.mark.parametrize(("count", "samples"), [(0, 1), (1, 1), (0, 230), (3, 40), (99, 100), (200, 10_000)])
@pytest.mark.parametrize("level", [0.001, 0.01, 0.3])
def test_the_limit_is_clopper_and_pearsons(count, samples, level):
    expected = binomtest(count, samples, alternative="less").proportion_ci(1 - level, method="exact").high
    assert binomial.upper_limit(count, samples, level) == pytest.approx(expected, rel=1e-9)
