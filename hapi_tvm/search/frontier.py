"""Best first among the open nodes, depth first below the small ones: the proven floor rises from the start."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hapi_tvm.search.choices import ChoiceBits
from hapi_tvm.search.nodes import explore, floors, place
from hapi_tvm.search.rules import Rules
from hapi_tvm.search.walk import Best, new_walk

__all__ = ["Frontier", "LayerSearch"]

SLICE_WORDS = 2e8
"""Words that one uninterrupted call may count, about a tenth of a second."""

SMALL_WORDS = 1e9
"""A node whose descendants, all of them, take no more words than this is walked depth first."""

MOST_OPEN = 200_000
"""Open nodes held at once, about 100 bytes each; beyond, the best of them is walked depth first."""

Floor = tuple[float, int, int, int]
"""As ``key_of`` gives it."""


@dataclass(frozen=True, slots=True)
class LayerSearch:
    """A layer, ready to be walked. below: float64 [K + 1, E + 1], how many designs of at most so many exits there
    are at or behind each candidate."""

    bits: ChoiceBits
    rules: Rules
    below: np.ndarray
    words: int

    @classmethod
    def of(cls, bits: ChoiceBits, rules: Rules) -> LayerSearch:
        last = rules.last_candidate
        choices = np.bincount(bits.candidate, minlength=last)
        below = np.ones((rules.max_exits + 1, last + 1))
        for exits in range(1, rules.max_exits + 1):
            for candidate in range(last - 1, -1, -1):
                below[exits, candidate] = (
                    below[exits, candidate + 1] + choices[candidate] * below[exits - 1, candidate + 1]
                )
        words = len(bits.gain_all) + len(bits.loss_all) + len(bits.rest_all) + 1
        return cls(bits, rules, below, words)

    def words_below(self, path: tuple[int, ...]) -> float:
        """What it takes to count every descendant of a node."""
        behind = int(self.bits.candidate[path[-1]]) + 1 if path else 0
        return self.words * float(self.below[self.rules.max_exits - len(path), behind])


class Frontier:
    """The nodes of some layers that are still open. Holds at most MOST_OPEN nodes and one walk a layer."""

    def __init__(self, layers: list[LayerSearch], best: Best, improved: Callable[[int], None]):
        """improved: called with the layer's index whenever ``best`` may have become better."""
        self._layers, self._best, self._improved = layers, best, improved
        lowest = (0.0, -(2**62), -(2**62), 0)
        self._heap: list[tuple[Floor, int, tuple[int, ...]]] = [
            (lowest, index, ())
            for index, layer in enumerate(layers)
            if layer.rules.max_exits and len(layer.bits.option)
        ]
        self._walks = {}

    @property
    def floor(self) -> Floor | None:
        """What no design below the open nodes can beat; None where there are none."""
        return self._heap[0][0] if self._heap else None

    def run(
        self,
        deadline_s: float,
        clock: Callable[[], float],
        done: Callable[[Floor], bool],
        between: Callable[[], None] = lambda: None,
    ) -> bool:
        """Until nothing is open, ``done`` says so of the lowest floor, or ``deadline_s``. Returns whether nothing
        better is left. between: called every now and then; it may make ``best`` better."""
        while self._heap and not done(self._heap[0][0]):
            between()
            if clock() >= deadline_s:
                return False
            floor, index, path = heapq.heappop(self._heap)
            layer, walk = self._layers[index], self._walk(index)
            place(layer.bits, layer.rules, walk, self._best, np.array(path, dtype=np.int64))
            self._improved(index)
            if len(self._heap) < MOST_OPEN and layer.words_below(path) > SMALL_WORDS:
                self._expand(index, path, floor)
            elif not self._walk_down(index, deadline_s, clock, between):
                heapq.heappush(self._heap, (floor, index, path))
                return False
        self._heap.clear()
        return True

    def _walk(self, index: int):
        if index not in self._walks:
            self._walks.clear()
            self._walks[index] = new_walk(self._layers[index].bits, self._layers[index].rules)
        return self._walks[index]

    def _expand(self, index: int, path: tuple[int, ...], above: Floor) -> None:
        layer, walk = self._layers[index], self._walk(index)
        room = len(layer.bits.option)
        choices, excess, keys = np.empty(room, np.int64), np.empty(room), np.empty((room, 3), np.int64)
        count = floors(layer.bits, layer.rules, walk, self._best, choices, excess, keys)
        for choice, over, key in zip(
            choices[:count].tolist(), excess[:count].tolist(), keys[:count].tolist(), strict=True
        ):
            heapq.heappush(self._heap, (max(above, (over, *key)), index, (*path, choice)))

    def _walk_down(
        self, index: int, deadline_s: float, clock: Callable[[], float], between: Callable[[], None]
    ) -> bool:
        layer, walk = self._layers[index], self._walk(index)
        nodes = max(1, int(SLICE_WORDS / (layer.words * max(1, len(layer.bits.option)))))
        while not explore(layer.bits, layer.rules, walk, self._best, nodes):
            self._improved(index)
            between()
            if clock() >= deadline_s:
                return False
        self._improved(index)
        return True
