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

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hapi_tvm.certify import binomial
from hapi_tvm.certify.counts import Counts

__all__ = ["LOST", "PAIRED", "LossTest", "lost_p_value", "paired_p_value"]

NUISANCE_SHARE = 0.1  # of delta, kept for the share of samples that differ; between 0.01 and 0.2 hardly matters
WINDOW_DEVIATIONS = 8  # around the mean; what lies outside is not left out but counts in full


@dataclass(frozen=True, slots=True)
class LossTest:
    """method: in words. p_value: from counts, epsilon and delta, both in (0, 1)."""

    method: str
    p_value: Callable[[Counts, float, float], float]


def lost_p_value(counts: Counts, epsilon: float, delta: float) -> float:
    """P(Binomial(samples, epsilon) <= lost), of H: E[L] >= epsilon; the same as comparing epsilon with the upper
    limit of Clopper and Pearson. It is the same for every ``delta``."""
    return float(binomial.at_most(counts.lost, counts.samples, epsilon))


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

    For a greater s the answer is 1: that close to the mean or above it, the chance is no small one. For a theta above
    that limit it is Hoeffding's bound for values in [-1, 1], which holds for every theta.
    """
    n, net = counts.samples, counts.lost - counts.gained
    reserved = NUISANCE_SHARE * delta
    theta = max(epsilon, binomial.upper_limit(counts.lost + counts.gained, n, reserved))
    if net > (n - 1) * epsilon - 1:
        return 1.0
    if theta > (1 + epsilon**2) / 2:
        tail = math.exp(-n * (epsilon - counts.drop) ** 2 / 2)
    else:
        tail = _net_at_most(net, n, theta, epsilon)
    return min(1.0, tail + reserved)


def _net_at_most(net: int, samples: int, theta: float, epsilon: float) -> float:
    """P(S <= net) for a sum S of independent D with P(D != 0) = theta and E[D] = epsilon.

    Summed over how many samples differ: of m, Binomial(m, (theta + epsilon) / (2 theta)) are lost, and S is that
    number twice, less m. Only m near its mean are looked at; the others count in full.
    """
    reach = WINDOW_DEVIATIONS * math.sqrt(samples * theta) + 16
    low, high = max(0, math.floor(samples * theta - reach)), min(samples, math.ceil(samples * theta + reach))
    differ = np.arange(low, high + 1)
    up_to = binomial.at_most(np.arange(low - 1, high + 1), samples, theta)
    within = np.diff(up_to) @ binomial.at_most((net + differ) // 2, differ, (theta + epsilon) / (2 * theta))
    return float(within + up_to[0] + 1 - up_to[-1])


LOST = LossTest("exact binomial test of the share of samples lost", lost_p_value)
PAIRED = LossTest("exact test of the paired difference", paired_p_value)
