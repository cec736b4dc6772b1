"""The counts of a design on samples drawn at given shares, and their probabilities, by the definition."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from hapi_tvm.certify.counts import Counts


def all_counts(samples: int) -> list[Counts]:
    return [Counts(samples, lost, gained) for lost in range(samples + 1) for gained in range(samples + 1 - lost)]


def probability(counts: Counts, lost_share: float, gained_share: float) -> float:
    """Of exactly these counts, where each sample is lost, gained or neither with the given shares."""
    same = counts.samples - counts.lost - counts.gained
    ways = math.comb(counts.samples, counts.lost) * math.comb(counts.samples - counts.lost, counts.gained)
    shares = Fraction(lost_share) ** counts.lost * Fraction(gained_share) ** counts.gained
    return float(ways * shares * (1 - Fraction(lost_share) - Fraction(gained_share)) ** same)


def drawn(random: np.random.Generator, samples: int, lost_share: float, gained_share: float) -> Counts:
    lost, gained, _ = random.multinomial(samples, [lost_share, gained_share, 1 - lost_share - gained_share])
    return Counts(samples, int(lost), int(gained))
