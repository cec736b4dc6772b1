"""The binomial law by the incomplete beta function: exact but for rounding, for any number of samples."""

from __future__ import annotations

import numpy as np
from scipy.special import betaincc, betainccinv

__all__ = ["at_most", "upper_limit"]


def at_most(count, samples, share):
    """P(Binomial(samples, share) <= count), elementwise. count: any integer. samples: 0 or more. share: in (0, 1)."""
    count, samples = np.asarray(count), np.asarray(samples)
    inside = (count >= 0) & (count < samples)
    below, rest = np.where(inside, count, 0), np.where(inside, samples - count, 1)
    return np.where(inside, betaincc(below + 1, rest, share), np.where(count < 0, 0.0, 1.0))


def upper_limit(count: int, samples: int, level: float) -> float:
    """The largest share under which ``count`` or fewer of ``samples`` still have the chance ``level``: the upper
    limit of Clopper and Pearson."""
    return 1.0 if count == samples else float(betainccinv(count + 1, samples - count, level))
