"""A sharper floor below a node: whoever leaves early is answered right there, or else is lost.

Of the samples that the backbone answers right and some option wrong (the losses of ``ChoiceBits``), each leaves where
some option is right, or is lost. Let n_k be how many of the running ones are answered right at candidate k and nowhere
before it from a start on; n_E, nowhere but at the end. All other running samples may leave at the start. If at most L
more samples may be lost, the latency is no less than if each left at its k, but the L that wait longest at the
start. Turned round, a budget gives the least L: what does not fit into it is lost. Ours; a design only adds to it
(thresholds, branches, a limit on the exits), so the floor is admissible.
"""

from __future__ import annotations

import numba
import numpy as np

from hapi_tvm.search.popcount import popcount

__all__ = ["count_waits", "left_behind", "least_losses", "saved_by_losses_ps", "waited_ps"]


@numba.njit(cache=True, error_model="numpy")
def count_waits(bits, losses, choice, still, waits):
    """Fill waits: int64 [E + 1], n_k of the samples in the bit set ``losses`` that pass ``choice``, behind it.
    still: uint64 [words], room to work in."""
    last = len(bits.answer)
    rest = np.uint64(0)
    for word in range(len(losses)):
        still[word] = losses[word] & ~bits.loss_fire[choice, word]
        rest += popcount(still[word])
    for candidate in range(bits.candidate[choice] + 1, last):
        answered = np.uint64(0)
        for word in range(len(losses)):
            answered += popcount(still[word] & bits.answer[candidate, word])
            still[word] &= ~bits.answer[candidate, word]
        waits[candidate] = answered
        rest -= answered
    waits[last] = rest


@numba.njit(cache=True, error_model="numpy")
def waited_ps(bits, waits, first):
    """What the samples of ``waits`` pay more, in all, than if they left at candidate ``first``."""
    waited = 0
    for candidate in range(first + 1, len(waits)):
        waited += waits[candidate] * (bits.place_ps[candidate] - bits.place_ps[first])
    return waited


@numba.njit(cache=True, error_model="numpy")
def saved_by_losses_ps(bits, waits, first, losses):
    """The most of ``waited_ps`` that ``losses`` of them can save."""
    saved = 0
    for candidate in range(len(waits) - 1, first, -1):
        leaving = min(losses, waits[candidate])
        saved += leaving * (bits.place_ps[candidate] - bits.place_ps[first])
        losses -= leaving
    return saved


@numba.njit(cache=True, error_model="numpy")
def least_losses(bits, waits, first, over_ps):
    """How many must be lost, at least, to save ``over_ps`` of ``waited_ps``; more than there are samples where all do
    not suffice."""
    losses = 0
    for candidate in range(len(waits) - 1, first, -1):
        if over_ps <= 0:
            return losses
        each_ps = bits.place_ps[candidate] - bits.place_ps[first]
        if each_ps * waits[candidate] >= over_ps:
            return losses + -(-over_ps // each_ps)
        losses += waits[candidate]
        over_ps -= each_ps * waits[candidate]
    return losses if over_ps <= 0 else 2**62


@numba.njit(cache=True, error_model="numpy")
def left_behind(bits, waits, first, latest_ps):
    """How many of ``waits`` leave only behind ``latest_ps`` of segments."""
    behind = 0
    for candidate in range(len(waits) - 1, first - 1, -1):
        if bits.place_ps[candidate] <= latest_ps:
            return behind
        behind += waits[candidate]
    return behind
