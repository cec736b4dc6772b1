"""One layer of a problem as bit sets and whole numbers, the way the compiled search reads it."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from hapi_tvm.search.popcount import pack, popcount
from hapi_tvm.search.problem import Layer, Problem

__all__ = ["ChoiceBits", "of_layer"]


class ChoiceBits(NamedTuple):
    """M choices among C options at E candidates, in network order; N samples in three groups.

    Gains: samples that the backbone gets wrong and some option right; losses: the reverse; rests: the others.
    gain_fire, loss_fire, rest_fire: uint64 [M, words of the group], who fires. gain_flip, loss_flip: uint64
    [C, words], whose answer at the option differs from the backbone's. gain_all, loss_all, rest_all: the group.

    answer: uint64 [E, words], which losses some option of the candidate answers right if its threshold is low
    enough. place_ps: int64 [E + 1], the segments up to each candidate, and all.

    option, candidate: int64 [M]. after: int64 [M + 1], the first choice at a later candidate; the last entry
    stands for the empty design. reach_ps, branch_ps, size: int64 [M]. stops: bool [M], threshold 0, so that
    nobody, seen or not, passes. must: bool [M], the candidate must carry an exit.
    next_must: int64 [M + 1], the first such candidate behind each choice; E where there is none.
    save_ps, gain: int64 [M + 1]: of the samples that each choice lets pass, what they save if each leaves at the
    first later place where it can fire, and how many can fire where they gain.
    least_branch_ps, least_cost_ps: int64 [M + 1]: at or behind each choice, the least branch, and the least
    reach and branch together; 0 behind the last.
    """

    gain_fire: np.ndarray
    loss_fire: np.ndarray
    rest_fire: np.ndarray
    gain_flip: np.ndarray
    loss_flip: np.ndarray
    gain_all: np.ndarray
    loss_all: np.ndarray
    rest_all: np.ndarray
    answer: np.ndarray
    place_ps: np.ndarray
    option: np.ndarray
    candidate: np.ndarray
    after: np.ndarray
    reach_ps: np.ndarray
    branch_ps: np.ndarray
    size: np.ndarray
    stops: np.ndarray
    must: np.ndarray
    next_must: np.ndarray
    save_ps: np.ndarray
    gain: np.ndarray
    least_branch_ps: np.ndarray
    least_cost_ps: np.ndarray


def of_layer(problem: Problem, layer: Layer) -> ChoiceBits:
    """Memory: N * (M + C) / 8 bytes."""
    instance, option = problem.instance, layer.option
    backbone = instance.right[:, -1]
    flips = instance.right[:, :-1] != backbone[:, None]
    contested = flips.any(axis=1)
    gains, losses, rests = contested & ~backbone, contested & backbone, ~contested
    candidate = instance.candidate[option]
    after = np.append(np.searchsorted(candidate, candidate, side="right"), 0)
    must = np.array(sorted(problem.space.must) + [len(instance.reach_ps) - 1], dtype=np.int64)
    sizes = np.array(problem.space.option_bytes or [0] * len(instance.options), dtype=np.int64)
    reach_ps, branch_ps = instance.option_reach_ps[option], instance.branch_ps[option]
    bits = ChoiceBits(
        gain_fire=_fire(problem, layer, gains),
        loss_fire=_fire(problem, layer, losses),
        rest_fire=_fire(problem, layer, rests),
        gain_flip=pack(flips[gains].T),
        loss_flip=pack(flips[losses].T),
        gain_all=pack(gains[gains][None])[0],
        loss_all=pack(losses[losses][None])[0],
        rest_all=pack(rests[rests][None])[0],
        answer=np.zeros((len(instance.reach_ps) - 1, -(-int(losses.sum()) // 64)), dtype=np.uint64),
        place_ps=instance.reach_ps,
        option=option,
        candidate=candidate,
        after=after,
        reach_ps=reach_ps,
        branch_ps=branch_ps,
        size=sizes[option],
        stops=layer.threshold <= 0,
        must=np.isin(candidate, must[:-1]),
        next_must=np.append(must[np.searchsorted(must, candidate, side="right")], must[0]),
        save_ps=np.zeros(len(layer) + 1, dtype=np.int64),
        gain=np.zeros(len(layer) + 1, dtype=np.int64),
        least_branch_ps=_least_from(branch_ps),
        least_cost_ps=_least_from(reach_ps + branch_ps),
    )
    _fill_limits(bits, instance.end_ps)
    return bits


def _fire(problem: Problem, layer: Layer, group: np.ndarray) -> np.ndarray:
    """uint64 [M, words]: who of ``group`` fires at each choice."""
    confidence = np.ascontiguousarray(problem.instance.confidence[group].T)
    words = -(-confidence.shape[1] // 64)
    fire = np.empty((len(layer), words), dtype=np.uint64)
    for option in np.unique(layer.option):
        here = layer.option == option
        fire[here] = pack(confidence[option] >= layer.threshold[here, None])
    return fire


def _least_from(values: np.ndarray) -> np.ndarray:
    """[M] -> [M + 1]: the least value at or behind each index; 0 behind the last."""
    return np.append(np.minimum.accumulate(values[::-1])[::-1], 0)


@numba.njit(cache=True, error_model="numpy")
def _fill_limits(bits, end_ps):
    """``save_ps``, ``gain`` and ``answer``, option by option: the lowest threshold of an option fires whoever can
    fire there."""
    choices = len(bits.option)
    lowest = np.empty(choices, dtype=np.int64)
    options = 0
    for choice in range(choices):
        if choice == 0 or bits.option[choice] != bits.option[choice - 1]:
            lowest[options] = choice
            options += 1
    _fill_gain(bits, lowest[:options])
    for low in lowest[:options]:
        answer, flip = bits.answer[bits.candidate[low]], bits.loss_flip[bits.option[low]]
        for word in range(len(answer)):
            answer[word] |= bits.loss_fire[low, word] & ~flip[word]
    gains, losses, rests = bits.gain_all.copy(), bits.loss_all.copy(), bits.rest_all.copy()
    for choice in range(choices + 1):
        running = _pass(bits.gain_all, bits.gain_fire, choice, gains)
        running += _pass(bits.loss_all, bits.loss_fire, choice, losses)
        running += _pass(bits.rest_all, bits.rest_fire, choice, rests)
        for low in lowest[:options]:
            if low < bits.after[choice]:
                continue
            leaving = _move(gains, bits.gain_fire[low]) + _move(losses, bits.loss_fire[low])
            leaving += _move(rests, bits.rest_fire[low])
            bits.save_ps[choice] += np.int64(leaving) * (end_ps - bits.reach_ps[low])
            running -= leaving
            if running == 0:
                break


@numba.njit(cache=True, error_model="numpy")
def _fill_gain(bits, lowest):
    """From the last option to the first, so that ``ever`` holds who gains somewhere behind a choice."""
    ever = np.zeros_like(bits.gain_all)
    choices = len(bits.option)
    index = len(lowest) - 1
    for choice in range(choices - 1, -2, -1):
        at = choice if choice >= 0 else choices
        while index >= 0 and lowest[index] >= bits.after[at]:
            low = lowest[index]
            for word in range(len(ever)):
                ever[word] |= bits.gain_fire[low, word] & bits.gain_flip[bits.option[low], word]
            index -= 1
        gain = np.uint64(0)
        for word in range(len(ever)):
            fires = bits.gain_fire[choice, word] if choice >= 0 else np.uint64(0)
            gain += popcount(bits.gain_all[word] & ever[word] & ~fires)
        bits.gain[at] = gain


@numba.njit(cache=True, error_model="numpy")
def _pass(everyone, fire, choice, running):
    """Fill ``running`` with those of ``everyone`` that do not fire at the choice, all for the empty design. How
    many."""
    count = np.uint64(0)
    for word in range(len(everyone)):
        running[word] = everyone[word] & ~fire[choice, word] if choice < len(fire) else everyone[word]
        count += popcount(running[word])
    return count


@numba.njit(cache=True, error_model="numpy", inline="always")
def _move(running, fire):
    """How many of ``running`` fire; they are taken out of it."""
    count = np.uint64(0)
    for word in range(len(running)):
        count += popcount(running[word] & fire[word])
        running[word] &= ~fire[word]
    return count
