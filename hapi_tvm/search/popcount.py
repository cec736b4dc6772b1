"""Bits counted by the machine's own instruction, in loops that the compiler turns into vectors."""

from __future__ import annotations

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

__all__ = ["count_choices", "pack", "popcount"]


@intrinsic
def popcount(typing_context, word):
    """How many bits of a uint64 are set."""
    if word != types.uint64:
        raise numba.TypingError(f"popcount takes a uint64, not {word}")

    def generate(context, builder, signature, arguments):
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


def pack(rows: np.ndarray) -> np.ndarray:
    """bool [R, M] -> uint64 [R, ceil(M / 64)], padded with zeros. Only counts are read back."""
    packed = np.zeros((len(rows), -(-rows.shape[1] // 64)), dtype=np.uint64)
    packed.view(np.uint8)[:, : -(-rows.shape[1] // 8)] = np.packbits(rows, axis=1)
    return packed


@numba.njit(cache=True, error_model="numpy")
def count_choices(bits, gains, losses, rests, first, last, fired, gained, lost):
    """Who leaves at each choice from ``first`` on and before ``last``, of the samples in the bit sets ``gains``,
    ``losses``, ``rests``.

    bits: ``ChoiceBits``. The three sets are its three groups of samples. fired, gained, lost: int64 [M], filled
    there: samples that fire; of those, how many are right where the backbone is wrong, and wrong where it is right.
    """
    for choice in range(first, last):
        option = bits.option[choice]
        fires = np.uint64(0)
        flips = np.uint64(0)
        for word in range(gains.shape[0]):
            leaving = gains[word] & bits.gain_fire[choice, word]
            fires += popcount(leaving)
            flips += popcount(leaving & bits.gain_flip[option, word])
        gained[choice] = flips
        flips = np.uint64(0)
        for word in range(losses.shape[0]):
            leaving = losses[word] & bits.loss_fire[choice, word]
            fires += popcount(leaving)
            flips += popcount(leaving & bits.loss_flip[option, word])
        lost[choice] = flips
        for word in range(rests.shape[0]):
            fires += popcount(rests[word] & bits.rest_fire[choice, word])
        fired[choice] = fires
