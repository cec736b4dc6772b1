"""Stage 1: the best design whose exits share one threshold, proven by branch and bound.

A beam search at every threshold finds a good design early. Then depth-first branch and bound visits
every other that could be better, one threshold after the other: the most promising, then those whose
floors are lowest, so that the proven gap closes even if time runs out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from hapi_tvm.search.bitsets import ThresholdBits
from hapi_tvm.search.bounds import Bounds
from hapi_tvm.search.evaluator import figures_of
from hapi_tvm.search.instance import Exits, Instance
from hapi_tvm.search.objective import Figures, Key, Objective, best_index, better
from hapi_tvm.search.tree import Nodes, Prefixes, Tree

__all__ = ["SharedResult", "beam", "search_shared", "shared_thresholds"]

BEAM_WIDTH = 8
BLOCK_WORDS = 2**16
"""Size of the largest bit array, in words: half a MiB, so that it stays in the cache."""


@dataclass(frozen=True, slots=True)
class SharedResult:
    """exits: the best design found, None where none keeps the SLA; best: the first part of its key.
    proven: the space holds none better. floor: no design of the space has a first part below it."""

    exits: Exits | None
    best: float | None
    proven: bool
    floor: float
    thresholds: int


def search_shared(
    instance: Instance, objective: Objective, *, grid: int, deadline_s: float, clock: Callable[[], float]
) -> SharedResult:
    """Of all designs with one threshold (of at most ``grid``) and at most ``objective.max_exits`` exits.

    Stops at ``deadline_s`` on ``clock`` with the best found so far. Same input, same answer, unless
    stopped by the clock. Memory: at most grid * C * N / 4 bytes for the bits, a few MiB beside.
    """
    found = _Incumbent(objective)
    found.offer_empty(instance)
    thresholds = shared_thresholds(instance, grid) if objective.max_exits else np.empty(0, dtype=np.float32)
    starts = []
    for threshold in thresholds:
        if clock() >= deadline_s:
            return found.result(len(thresholds), [_blind_floor(instance, objective)])
        tree = Tree(instance, ThresholdBits.at(instance, threshold))
        here = _Incumbent(objective)
        for prefixes, nodes in beam(tree, objective, BEAM_WIDTH):
            here.offer(tree, prefixes, nodes)
        found.adopt(here)
        starts.append((here.key, tree, Bounds(tree)))
    open_floors = []
    for tree, bounds in _visiting_order(starts, objective):
        open_floors += _explore(tree, bounds, found, deadline_s, clock)
    return found.result(len(thresholds), open_floors)


def shared_thresholds(instance: Instance, grid: int) -> np.ndarray:
    """float32 [at most ``grid``], rising: quantiles of the confidences of all options, each one of them."""
    if not instance.options:
        return np.empty(0, dtype=np.float32)
    pooled = np.sort(instance.confidence, axis=None)
    place = np.rint(np.linspace(0, pooled.size - 1, grid)).astype(np.int64)
    return np.unique(pooled[place])


def beam(tree: Tree, objective: Objective, width: int) -> Iterator[tuple[Prefixes, Nodes]]:
    """Level by level, the ``width`` best designs and all their children. Best: keeps the accuracy limit,
    comes closest to the latency budgets, then the objective."""
    prefixes = tree.root()
    for exits in range(1, objective.max_exits + 1):
        nodes = tree.expand(prefixes)
        if not len(nodes.option):
            return
        yield prefixes, nodes
        figures = tree.figures(nodes, exits)
        over = np.maximum(objective.excess(figures), 1.0)
        outside = ~objective.within_drop(figures.lost, figures.gained)
        order = np.lexsort((*reversed(objective.key(figures)), over, outside))
        prefixes = tree.descend(prefixes, nodes.take(order[:width]))


class _Incumbent:
    """The best design so far, and its key; the first of equals stays."""

    def __init__(self, objective: Objective):
        self.objective = objective
        self.key: Key | None = None
        self.exits: Exits | None = None

    def offer_empty(self, instance: Instance) -> None:
        figures = figures_of(instance, ())
        if self.objective.feasible(figures):
            self.key, self.exits = self.objective.key(figures), ()

    def offer(self, tree: Tree, prefixes: Prefixes, nodes: Nodes) -> None:
        """The best of ``nodes``, children of ``prefixes``, if it is better."""
        figures = tree.figures(nodes, prefixes.path.shape[1] + 1)
        key = self.objective.key(figures)
        best = best_index(key, better(key, self.key) & self.objective.feasible(figures))
        if best is not None:
            self.key = tuple(part[best].item() for part in key)
            path = [*prefixes.path[nodes.parent[best]].tolist(), int(nodes.option[best])]
            self.exits = tuple((option, float(tree.bits.threshold)) for option in path)

    def adopt(self, other: _Incumbent) -> None:
        if other.key is not None and better(other.key, self.key):
            self.key, self.exits = other.key, other.exits

    def result(self, thresholds: int, open_floors: list[float]) -> SharedResult:
        """open_floors: the floors of all that was not visited."""
        best = None if self.key is None else self.key[0]
        floor = min(open_floors + ([] if best is None else [best]), default=np.inf)
        return SharedResult(self.exits, best, not open_floors, floor, thresholds)


def _visiting_order(
    starts: list[tuple[Key | None, Tree, Bounds]], objective: Objective
) -> Iterator[tuple[Tree, Bounds]]:
    """The threshold with the best design so far, then the others by rising floor."""

    def floor(start: tuple[Key | None, Tree, Bounds]) -> float:
        _, tree, bounds = start
        return float(objective.key(bounds.floor(tree.root().nodes, 0, objective.max_exits))[0][0])

    reached = [start for start in starts if start[0] is not None]
    first = min(reached, key=lambda start: start[0]) if reached else None
    for start in sorted(starts, key=lambda start: (start is not first, floor(start))):
        yield start[1:]


def _explore(
    tree: Tree, bounds: Bounds, found: _Incumbent, deadline_s: float, clock: Callable[[], float]
) -> list[float]:
    """Depth-first branch and bound over ``tree``. Returns the floors of what was left unvisited: nothing,
    unless time ran out."""
    stack = [tree.root()]
    while stack:
        block = stack.pop()
        exits = block.path.shape[1]
        open_rows, floors = _open(bounds, block.nodes, exits, found)
        if not open_rows.size:
            continue
        if clock() >= deadline_s:
            rest = [_open(bounds, other.nodes, other.path.shape[1], found)[1] for other in stack]
            return np.concatenate([floors, *rest]).tolist()
        block = block.take(open_rows)
        nodes = tree.expand(block)
        found.offer(tree, block, nodes)
        if exits + 1 < found.objective.max_exits:
            open_rows, _ = _open(bounds, nodes, exits + 1, found)
            stack += _blocks(tree, tree.descend(block, nodes.take(open_rows)))
    return []


def _open(bounds: Bounds, nodes: Nodes, exits: int, found: _Incumbent) -> tuple[np.ndarray, np.ndarray]:
    """The rows of ``nodes``, designs of ``exits`` exits, below which something better may lie, and the
    first part of the key that it cannot go below."""
    objective = found.objective
    floor = bounds.floor(nodes, exits, objective.max_exits)
    key = objective.key(floor)
    rows = np.flatnonzero(bounds.possible(nodes, floor, objective) & better(key, found.key))
    return rows, np.asarray(key[0])[rows]


def _blocks(tree: Tree, prefixes: Prefixes) -> Iterator[Prefixes]:
    """Cut so that a block times its later options fits BLOCK_WORDS; rows with the same last option meet,
    so that few of the columns are wasted."""
    prefixes = prefixes.take(np.argsort(prefixes.nodes.option, kind="stable"))
    row_words = max(1, prefixes.running.shape[1])
    begin = 0
    while begin < len(prefixes):
        columns = max(1, tree.options - int(tree.after[prefixes.nodes.option[begin]]))
        end = begin + max(1, BLOCK_WORDS // (columns * row_words))
        yield prefixes.take(np.arange(begin, min(end, len(prefixes))))
        begin = end


def _blind_floor(instance: Instance, objective: Objective) -> float:
    """First part of the key of a design that loses nothing and answers all at the cheapest place."""
    soonest_ps = int(np.min(instance.option_reach_ps + instance.branch_ps, initial=instance.end_ps))
    ideal = Figures(
        total_ps=instance.samples * soonest_ps,
        lost=0,
        gained=int(np.count_nonzero(~instance.right[:, -1])),
        p95_ps=soonest_ps,
        p99_ps=soonest_ps,
        worst_ps=instance.end_ps,
        exits=0,
    )
    return float(objective.key(ideal)[0])
