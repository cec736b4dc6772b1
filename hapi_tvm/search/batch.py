"""Many designs of a problem evaluated at once, in the encoding that strategies from libraries want: one gene a
candidate."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from hapi_tvm.search.choices import ChoiceBits, of_layer
from hapi_tvm.search.instance import Exits
from hapi_tvm.search.objective import Figures
from hapi_tvm.search.popcount import popcount
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.rules import NO_LIMIT, of_problem

__all__ = ["Batch"]


class Batch:
    """genes: tuple of ints, how many values each gene has. Gene e is candidate e: 0 places no exit there, g the
    g-th choice (option and threshold) of the layer. Where thresholds are shared a gene for the layer comes first.

    Memory: the bits of the layers, N * (M + C) / 8 bytes each; all that were asked for are kept.
    """

    def __init__(self, problem: Problem):
        self._problem, self._rules = problem, of_problem(problem)
        self._bits: dict[int, ChoiceBits] = {}
        candidates = len(problem.instance.reach_ps) - 1
        placed = (problem.instance.candidate[layer.option] for layer in problem.layers)
        # Layers differ where two thresholds are equal, such as a quantile of 0 and the 0 that answers whoever comes.
        counts = np.max([np.bincount(candidate, minlength=candidates) for candidate in placed], axis=0)
        self._shared = problem.space.shared
        self.genes = ((len(problem.layers),) if self._shared else ()) + tuple((counts + 1).tolist())

    def figures(self, genes: np.ndarray) -> Figures:
        """genes: int [B, G]. Returns arrays [B], as of ``figures_of``; limits of the space are not looked at."""
        layers, values = self._split(genes)
        columns = np.empty((len(values), 8), dtype=np.int64)
        for layer in np.unique(layers).tolist():
            rows = np.flatnonzero(layers == layer)
            bits = self.layer(layer)
            out = np.empty((len(rows), 8), dtype=np.int64)
            _evaluate(bits, self._rules, self._choices(bits, values[rows]), out)
            columns[rows] = out
        return Figures(*columns.T)

    def fits(self, genes: np.ndarray) -> np.ndarray:
        """bool [B]: whether the designs keep the limits of the space."""
        layers, values = self._split(genes)
        must = np.array(sorted(self._problem.space.must), dtype=np.int64)
        fits = (values[:, must] > 0).all(axis=1) & ((values > 0).sum(axis=1) <= self._problem.objective.max_exits)
        if self._problem.space.max_bytes is not None:
            for layer in np.unique(layers).tolist():
                rows, bits = np.flatnonzero(layers == layer), self.layer(layer)
                choices = self._choices(bits, values[rows])
                size = np.append(bits.size, 0)[choices].sum(axis=1)  # no choice, -1, is the 0
                fits[rows] &= size <= self._problem.space.max_bytes
        return fits

    def exits(self, genes: np.ndarray) -> Exits:
        """The design of one row, int [G]."""
        layers, values = self._split(np.asarray(genes)[None])
        layer = int(layers[0])
        choices = self._choices(self.layer(layer), values)[0]
        return self._problem.layers[layer].exits(choices[choices >= 0])

    def layer(self, layer: int) -> ChoiceBits:
        """The bits of one layer of the problem; made when first asked for."""
        if layer not in self._bits:
            self._bits[layer] = of_layer(self._problem, self._problem.layers[layer])
        return self._bits[layer]

    def genes_of(self, layer: int, path: Sequence[int]) -> np.ndarray:
        """int64 [G]: the design of the choices ``path`` of a layer."""
        bits, chosen = self.layer(layer), np.asarray(path, dtype=np.int64)
        values = np.zeros(len(self.genes) - self._shared, dtype=np.int64)
        candidates = bits.candidate[chosen]
        values[candidates] = chosen - np.searchsorted(bits.candidate, candidates) + 1
        return np.concatenate([[layer] * self._shared, values]).astype(np.int64)

    def _split(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        genes = np.asarray(genes, dtype=np.int64)
        return (genes[:, 0], genes[:, 1:]) if self._shared else (np.zeros(len(genes), dtype=np.int64), genes)

    def _choices(self, bits: ChoiceBits, values: np.ndarray) -> np.ndarray:
        """int64 [B, E]: index of the choice at each candidate, -1 for none. A gene beyond the choices of its layer
        (where two thresholds are equal) means the last of them."""
        first = np.searchsorted(bits.candidate, np.arange(values.shape[1]))
        last = np.searchsorted(bits.candidate, np.arange(values.shape[1]), side="right")
        return np.where(values > 0, np.minimum(first + values, last) - 1, -1)


@numba.njit(cache=True, error_model="numpy")
def _evaluate(bits, rules, choices, out):
    """choices: int64 [B, E]. out: int64 [B, 8], the columns of ``Figures``."""
    gains, losses, rests = bits.gain_all.copy(), bits.loss_all.copy(), bits.rest_all.copy()
    for row in range(choices.shape[0]):
        gains[:], losses[:], rests[:] = bits.gain_all, bits.loss_all, bits.rest_all
        left = paid_ps = branches_ps = lost = gained = exits = 0
        p95_ps = p99_ps = stopped_ps = NO_LIMIT
        for candidate in range(choices.shape[1]):
            choice = choices[row, candidate]
            if choice < 0:
                continue
            exits += 1
            option = bits.option[choice]
            branches_ps += bits.branch_ps[choice]
            cost_ps = bits.reach_ps[choice] + branches_ps
            fired_gains, flips = _leave(gains, bits.gain_fire[choice], bits.gain_flip[option])
            gained += flips
            fired_losses, flips = _leave(losses, bits.loss_fire[choice], bits.loss_flip[option])
            lost += flips
            fired = fired_gains + fired_losses + _leave_uncontested(rests, bits.rest_fire[choice])
            left += fired
            paid_ps += fired * cost_ps
            if p95_ps == NO_LIMIT and left >= rules.rank95:
                p95_ps = cost_ps
            if p99_ps == NO_LIMIT and left >= rules.rank99:
                p99_ps = cost_ps
            if bits.stops[choice]:
                stopped_ps = min(stopped_ps, cost_ps)
        worst_ps = rules.end_ps + branches_ps
        out[row, 0] = paid_ps + (rules.samples - left) * worst_ps
        out[row, 1], out[row, 2] = lost, gained
        out[row, 3], out[row, 4] = min(p95_ps, worst_ps), min(p99_ps, worst_ps)
        out[row, 5], out[row, 6], out[row, 7] = worst_ps, min(stopped_ps, worst_ps), exits


@numba.njit(cache=True, error_model="numpy")
def _leave(running, fire, flip):
    """How many of ``running`` fire, and how many of those flip; those that fire are taken out of it."""
    fired, flips = np.uint64(0), np.uint64(0)
    for word in range(len(running)):
        leaving = running[word] & fire[word]
        fired += popcount(leaving)
        flips += popcount(leaving & flip[word])
        running[word] ^= leaving
    return np.int64(fired), np.int64(flips)


@numba.njit(cache=True, error_model="numpy")
def _leave_uncontested(running, fire):
    fired = np.uint64(0)
    for word in range(len(running)):
        leaving = running[word] & fire[word]
        fired += popcount(leaving)
        running[word] ^= leaving
    return np.int64(fired)
