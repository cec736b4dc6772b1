"""A design as a synchronous-dataflow graph: who fires how often, in exact rationals.

The graph is a chain, segment, exit, segment, exit, ..., segment, and one firing of the first segment is one
sample. The arc into an exit carries one token a firing; the arc behind exit i carries 1 - p_i, where p_i is the
share of the samples arriving at i that leave there. With one row an arc, the topology matrix G holds what each
actor puts on the arc, less what it takes off; the balance equations G r = 0 with r_1 = 1 give the repetition
vector r, the mean firings a sample. So the mean latency is the sum of r times the costs of the actors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from hapi_tvm.records import CalibrationTable, Design, LatencyTable
from hapi_tvm.search.describe import exits_of
from hapi_tvm.search.evaluator import check_exits, leave_costs_ps
from hapi_tvm.search.instance import PS_PER_US, Exits, Instance

__all__ = ["Dataflow", "sdf"]


@dataclass(frozen=True, slots=True)
class Dataflow:
    """K placed exits make A = 2 K + 1 actors in a chain and 2 K arcs, arc a from actor a to actor a + 1.

    actors: names, the segments at even places, merged up to the next exit; the exits between them.
    cost_ps: of one firing, the gate being part of its exit. produced, consumed: tokens that a firing puts on each
    arc and takes off it; consumed is 1. samples: how many the shares were counted on.
    """

    actors: tuple[str, ...]
    cost_ps: tuple[int, ...]
    produced: tuple[Fraction, ...]
    consumed: tuple[Fraction, ...]
    samples: int

    @property
    def topology(self) -> tuple[tuple[Fraction, ...], ...]:
        """[2 K, A], a row an arc: produced in the column of its producer, minus consumed in its consumer's."""
        rows = []
        for arc, (produced, consumed) in enumerate(zip(self.produced, self.consumed, strict=True)):
            row = [Fraction(0)] * len(self.actors)
            row[arc], row[arc + 1] = produced, -consumed
            rows.append(tuple(row))
        return tuple(rows)

    @property
    def repetitions(self) -> tuple[Fraction, ...]:
        """[A], firings a sample: the r with G r = 0 and r_1 = 1. In a chain each row of G gives the next entry; G
        has one row less than columns and no row of zeros, so there is no other."""
        rates = [Fraction(1)]
        for produced, consumed in zip(self.produced, self.consumed, strict=True):
            rates.append(rates[-1] * produced / consumed)
        return tuple(rates)

    @property
    def firings(self) -> tuple[int, ...]:
        """[A]: the least whole numbers in the proportion of ``repetitions``; 0 for an actor that nobody reaches."""
        rates = self.repetitions
        scale = math.lcm(*(rate.denominator for rate in rates))
        return tuple(int(rate * scale) for rate in rates)

    @property
    def mean_ps(self) -> Fraction:
        """Latency of an average sample: the sum of repetitions times costs."""
        return sum((rate * cost for rate, cost in zip(self.repetitions, self.cost_ps, strict=True)), Fraction(0))

    @property
    def mean_us(self) -> float:
        return float(self.mean_ps / PS_PER_US)

    def to_json(self) -> dict:
        """As JSON values; rationals as text, such as "3/4"."""
        return {
            "actors": list(self.actors),
            "cost_us": [cost / PS_PER_US for cost in self.cost_ps],
            "topology": [[str(entry) for entry in row] for row in self.topology],
            "repetitions": [str(rate) for rate in self.repetitions],
            "firings": list(self.firings),
            "mean_us": self.mean_us,
        }

    def __str__(self) -> str:
        """Three tables of plain text: actors, topology matrix, mean latency."""
        rates, firings = self.repetitions, self.firings
        actors = [("", "actor", "repetitions", "", "firings", "cost us")]
        for place, (name, cost) in enumerate(zip(self.actors, self.cost_ps, strict=True)):
            fraction = f"= {rates[place]}" if rates[place].denominator > 1 else ""
            rate = f"{float(rates[place]):.4f}"
            actors.append((f"r{place + 1}", name, rate, fraction, str(firings[place]), f"{cost / PS_PER_US:.3f}"))
        matrix = [("G", *(f"r{place + 1}" for place in range(len(rates))))]
        for arc, row in enumerate(self.topology):
            matrix.append((f"r{arc + 1} -> r{arc + 2}", *(f"{float(entry):.4g}" if entry else "." for entry in row)))
        return "\n\n".join(
            (
                f"dataflow graph, rates counted on {self.samples} samples\n" + _aligned(actors),
                "topology matrix, a row an arc: G r = 0\n" + _aligned(matrix),
                f"mean latency = sum of repetitions x costs = {self.mean_us:.3f} us",
            )
        )


def sdf(design: Design, calibration: CalibrationTable, latency: LatencyTable) -> Dataflow:
    """The dataflow graph of a design; its ``mean_us`` is that of ``evaluate``.

    Costs are those the design was planned with, at its SLA's ``latency_quantile``. Raises RecordError if the tables
    contradict each other or know no such exit.
    """
    instance = Instance.from_tables(calibration, latency, latency_quantile=design.sla.latency_quantile)
    exits = exits_of(design, instance.options)
    check_exits(instance, exits)
    return dataflow_of(instance, exits, [f"{placed.name} ({placed.kind})" for placed in design.exits])


def dataflow_of(instance: Instance, exits: Exits, names: Sequence[str]) -> Dataflow:
    """names: of the exits. Where nobody arrives at an exit, its arc carries 1: no share of nobody leaves."""
    running = np.ones(instance.samples, dtype=bool)
    produced: list[Fraction] = []
    for option, threshold in exits:
        arrived = int(np.count_nonzero(running))
        running &= instance.confidence[:, option] < np.float32(threshold)
        passed = Fraction(int(np.count_nonzero(running)), arrived) if arrived else Fraction(1)
        produced += [Fraction(1), passed]
    return Dataflow(
        actors=_chain(names),
        cost_ps=_costs_ps(instance, exits),
        produced=tuple(produced),
        consumed=(Fraction(1),) * len(produced),
        samples=instance.samples,
    )


def _chain(names: Sequence[str]) -> tuple[str, ...]:
    """Merged segments are numbered as in the compiled module."""
    behind = [(name, f"segment_{place:02d}") for place, name in enumerate(names, 1)]
    return ("segment_00", *(actor for pair in behind for actor in pair))


def _costs_ps(instance: Instance, exits: Exits) -> tuple[int, ...]:
    """[A]: what leaving at each place costs grows, from one place to the next, by a segment and a branch."""
    costs_ps, before_ps = [], 0
    branches_ps = [int(instance.branch_ps[option]) for option, _ in exits] + [0]
    for leave_ps, branch_ps in zip(leave_costs_ps(instance, exits).tolist(), branches_ps, strict=True):
        costs_ps += [leave_ps - before_ps - branch_ps, branch_ps]
        before_ps = leave_ps
    return tuple(costs_ps[:-1])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns to the right, the first two of text to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
