"""Samples as bits, 64 to a word: who fires at one threshold, and whose answer changes thereby."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hapi_tvm.search.instance import Instance

__all__ = ["ThresholdBits", "count_bits", "pack"]


def pack(rows: np.ndarray) -> np.ndarray:
    """bool [R, M] -> uint64 [R, ceil(M / 64)], padded with zeros. Only counts are read back."""
    padded = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 64)))
    return np.ascontiguousarray(np.packbits(padded, axis=1)).view(np.uint64)


def count_bits(words: np.ndarray) -> np.ndarray:
    """uint64 [..., W] -> int64 [...]: how many bits are set."""
    narrow = np.uint16 if words.shape[-1] < 2**16 // 64 else np.uint32
    return np.bitwise_count(words).sum(axis=-1, dtype=narrow).astype(np.int64)


@dataclass(frozen=True, slots=True)
class ThresholdBits:
    """Every option at one shared threshold, over the samples that fire anywhere (the others never leave).

    fire: uint64 [C, W]. flip: uint64 [C, V], V <= W: fires, and answers right where the backbone is
    wrong or the reverse. Samples are sorted so that all flips lie in the first V words, and the
    backbone is wrong on those of the first ``gain_words`` words (a flip gains) and right on the rest
    (a flip loses). everyone: uint64 [W], the bits that stand for a sample.
    """

    threshold: np.float32
    fire: np.ndarray
    flip: np.ndarray
    gain_words: int
    everyone: np.ndarray

    @classmethod
    def at(cls, instance: Instance, threshold: np.float32) -> ThresholdBits:
        fire = instance.confidence >= threshold
        flip = fire & (instance.right[:, :-1] != instance.right[:, -1:])
        contested = flip.any(axis=1)
        backbone_right = instance.right[:, -1]
        groups = [contested & ~backbone_right, contested & backbone_right, fire.any(axis=1) & ~contested]
        fire_words = [pack(fire[group].T) for group in groups]
        return cls(
            threshold=threshold,
            fire=np.concatenate(fire_words, axis=1),
            flip=np.concatenate([pack(flip[group].T) for group in groups[:2]], axis=1),
            gain_words=fire_words[0].shape[1],
            everyone=np.concatenate([pack(group[group][None])[0] for group in groups]),
        )
