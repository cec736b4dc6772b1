"""How many samples a design would need to be certified, going by what it lost so far."""

from __future__ import annotations

from hapi_tvm.certify.counts import Counts
from hapi_tvm.certify.pvalues import LossTest

__all__ = ["at_the_same_rate", "samples_needed"]

MOST_SAMPLES = 100_000_000


def at_the_same_rate(counts: Counts, samples: int) -> Counts:
    """The counts expected of ``samples`` samples, rounded against the design."""
    lost = -(-counts.lost * samples // counts.samples)
    return Counts(samples, lost, min(samples - lost, counts.gained * samples // counts.samples))


def samples_needed(counts: Counts, epsilon: float, delta: float, test: LossTest) -> int | None:
    """A number of samples, those counted included, that passes ``test`` at the observed rates while one fewer does
    not; None where MOST_SAMPLES would not: what was lost is epsilon, or next to it, or more.

    An estimate: with that many samples a design passes about every other time.
    """

    def passes(samples: int) -> bool:
        return test.p_value(at_the_same_rate(counts, samples), epsilon, delta) <= delta

    fails, enough = counts.samples - 1, counts.samples
    while not passes(enough):
        if enough >= MOST_SAMPLES:
            return None
        fails, enough = enough, min(2 * enough, MOST_SAMPLES)
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if passes(middle) else (middle, enough)
    return enough
