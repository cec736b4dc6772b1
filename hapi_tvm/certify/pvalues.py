"""Exact tests of "the design loses epsilon or more", from the counts of one split.

Two losses, of which either mean bounds the accuracy drop:

``LOST``: L = 1 where the backbone is right and the design is wrong, else 0. The drop is E[L] less the share
gained, so E[L] <= epsilon says more than is asked: at most epsilon of all samples get worse, whatever others gain.

``PAIRED``: D = 1 where the backbone alone is right, -1 where the design alone is, else 0, and E[D] is the drop
itself. Early exits also mend answers, so D often passes where L cannot. What makes its test sharp is that its
variance is at most the share of samples on which the two differ, some percent. A bound that knows of D only that it
lies in an interval, such as Hoeffding-Bentkus on (D + 1) / 2, allows for a variance near 1: where 1.25 % are lost and
0.75 % gained, it certifies one point at delta = 0.1 from 129,000 samples on, and this test from 2,600. So none of that
kind is offered.

A p-value here is valid: where the drop is epsilon or more, the chance of one of u or less is at most u, for every
number of samples and without any approximation but that of floating point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, binom

from hapi_tvm.certify.counts import Counts

__all__ = ["LOST", "PAIRED", "LossTest", "lost_p_value", "paired_p_value"]

NUISANCE_SHARE = 0.1  # of delta, kept for the share of samples that differ; between 0.01 and 0.2 hardly matters
_TAIL = 1e-13


@dataclass(frozen=True, slots=True)
class LossTest:
    """method: in words. p_value: from counts, epsilon and delta, both in (0, 1)."""

    method: str
    p_value: Callable[[Counts, float, float], float]


def lost_p_value(counts: Counts, epsilon: float, delta: float) -> float:
    """P(Binomial(samples, epsilon) <= lost), of H: E[L] >= epsilon; the same as comparing epsilon with the upper
    limit of Clopper and Pearson. It is the same for every ``delta``."""
    return float(binom.cdf(counts.lost, counts.samples, epsilon))


def paired_p_value(counts: Counts, epsilon: float, delta: float) -> float:
    """Of H: E[D] >= epsilon, by the chance of a sum of n such D as low as ``lost - gained`` or lower.

    That chance depends on the unknown share theta = P(D != 0). So it is taken at the worst theta of a one-sided
    confidence interval of level 1 - b (Clopper and Pearson), b = NUISANCE_SHARE * delta, and b is added: the
    device of Berger and Boos. Within the interval the worst is its upper end (ours):

    - of all laws with one theta and E[D] >= epsilon, E[D] = epsilon is stochastically the least;
    - there d/dtheta P(S_n <= s) = n / 2 * (P(S_{n-1} = s + 1) - P(S_{n-1} = s)), with S_n the sum of n of them;
    - for theta <= (1 + epsilon^2) / 2, D + 1 is the sum of two independent Bernoullis (the roots of its generating
      function are real), so S_{n-1} + n - 1 is a sum of Bernoullis, whose probabilities rise up to the whole
      part of the mean (Darroch's rule; see Gnedin, arXiv 2408.06477): the derivative is not negative for
      s <= (n - 1) * epsilon - 1.

    Outside of these two limits the answer is 1: nothing would pass there that matters.
    """
    n, net = counts.samples, counts.lost - counts.gained
    reserved = NUISANCE_SHARE * delta
    theta = max(epsilon, _upper_share(counts.lost + counts.gained, n, reserved))
    if theta > (1 + epsilon**2) / 2 or net > (n - 1) * epsilon - 1:
        return 1.0
    return min(1.0, _net_at_most(net, n, theta, epsilon) + reserved)


def _upper_share(count: int, samples: int, level: float) -> float:
    """Upper limit of Clopper and Pearson for a binomial share, exceeded with probability ``level`` at most."""
    return 1.0 if count == samples else float(beta.ppf(1 - level, count + 1, samples - count))


def _net_at_most(net: int, samples: int, theta: float, epsilon: float) -> float:
    """P(S <= net) for a sum S of independent D with P(D != 0) = theta and E[D] = epsilon.

    Summed over how many samples differ: of m, Binomial(m, (theta + epsilon) / (2 theta)) are lost, and S is that
    number twice, less m. What lies in the far tails of m counts in full.
    """
    low, high = int(binom.ppf(_TAIL, samples, theta)), int(binom.isf(_TAIL, samples, theta))
    differ = np.arange(low, high + 1)
    most_lost = (net + differ) // 2
    within = binom.pmf(differ, samples, theta) @ binom.cdf(most_lost, differ, (theta + epsilon) / (2 * theta))
    return float(within + binom.cdf(low - 1, samples, theta) + binom.sf(high, samples, theta))


LOST = LossTest("exact binomial test of the share of samples lost", lost_p_value)
PAIRED = LossTest("exact test of the paired difference", paired_p_value)
