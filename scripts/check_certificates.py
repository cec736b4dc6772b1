#!/usr/bin/env python3
"""Do certificates hold? Search and certify again and again on samples of a population whose truth is known.

``searched``: every redraw takes new samples of a large synthetic population, searches on one half of them, certifies
on the other, and compares with the drop over the whole population. With ``drop_confidence`` 0.5 the search plans
without any margin, so that what it chooses is often worse than it looks (``choice_exceeds``).
``at_the_limit``: one design that loses exactly epsilon, and the chance to certify it: the worst that can be, which
the theory holds at delta or less.

JSON on stdout. ``exceeds`` counts the redraws with a certified design that really loses more than epsilon; the theory
bounds its share of all redraws (``of_redraws``, with the exact binomial interval of the simulation) by delta.
``of_certified`` is its share of the certified ones. ``holds``: none of the intervals lies above delta.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from scipy.stats import binomtest

from hapi_tvm.certify import certify, hold_out
from hapi_tvm.certify.counts import Counts
from hapi_tvm.certify.pvalues import LOST, PAIRED, LossTest
from hapi_tvm.records import SLA, CalibrationTable, Candidate, Design, ExitGraph, KernelLatency, LatencyTable, Option
from hapi_tvm.search import Space, ladder
from hapi_tvm.search.exact import Exact

CANDIDATES = 4
KIND = "linear"
SPACE = Space(grid=8)
GRID_ONLY = Exact(polish=False)
TESTS = {"lost": LOST, "paired": PAIRED}


@dataclass(frozen=True, slots=True)
class Setting:
    """samples: of search and certification together, half and half."""

    epsilon: float
    delta: float
    samples: int
    drop_confidence: float

    @property
    def sla(self) -> SLA:
        return SLA(
            max_accuracy_drop=self.epsilon,
            drop_confidence=self.drop_confidence,
            certify_delta=self.delta,
            max_exits=2,
        )


SETTINGS = (
    Setting(epsilon=0.01, delta=0.1, samples=2000, drop_confidence=0.5),
    Setting(epsilon=0.02, delta=0.1, samples=1000, drop_confidence=0.5),
    Setting(epsilon=0.02, delta=0.3, samples=1000, drop_confidence=0.5),
    Setting(epsilon=0.01, delta=0.05, samples=8000, drop_confidence=0.95),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A design that loses epsilon on balance. gained_share: of the samples, what it mends (0 for ``lost``)."""

    test: str
    epsilon: float
    delta: float
    samples: int
    gained_share: float


LIMITS = (
    Limit("lost", epsilon=0.01, delta=0.1, samples=1000, gained_share=0.0),
    Limit("lost", epsilon=0.02, delta=0.05, samples=2500, gained_share=0.0),
    Limit("paired", epsilon=0.01, delta=0.1, samples=1000, gained_share=0.0),
    Limit("paired", epsilon=0.01, delta=0.1, samples=2500, gained_share=0.01),
    Limit("paired", epsilon=0.02, delta=0.05, samples=2500, gained_share=0.05),
)


def answers(random: np.random.Generator, samples: int) -> CalibrationTable:
    """Exits that grow better with depth; all of them, and the backbone, find the same samples hard."""
    hard = random.gumbel(size=(samples, 1))
    depth = np.append(np.linspace(0.3, 0.9, CANDIDATES), 1.0)
    margin = 1.0 + 3.5 * depth - 1.2 * hard + random.normal(size=(samples, CANDIDATES + 1))
    right = random.random(margin.shape) < 1 / (1 + np.exp(-1.5 * margin))
    confidence = 1 / (1 + np.exp(-margin - 0.5 * random.normal(size=margin.shape)))
    return CalibrationTable(
        split="population",
        options=tuple(Option(candidate, KIND) for candidate in range(CANDIDATES)),
        confidence=confidence.astype(np.float32),
        prediction=right.astype(np.int32),
        label=np.ones(samples, dtype=np.int32),
    )


def network() -> tuple[LatencyTable, ExitGraph]:
    """Segments of 100 us each and branches of 5."""
    options = tuple(Option(candidate, KIND) for candidate in range(CANDIDATES))
    kernels = (KernelLatency("segment", "segment", 100.0, 1.0), KernelLatency("branch", "branch", 5.0, 0.1))
    latency = LatencyTable(
        target="none",
        threads=1,
        tvm_version="none",
        kernels=kernels,
        segments=(("segment",),) * (CANDIDATES + 1),
        options=options,
        branches=(("branch",),) * CANDIDATES,
    )
    candidates = tuple(
        Candidate(f"exit_{i}", f"tensor_{i}", (1, 1, 1, 1), "float32", i + 1, (i + 1) / (CANDIDATES + 1))
        for i in range(CANDIDATES)
    )
    return latency, ExitGraph("none", 2, CANDIDATES + 1, candidates, (KIND,))


def redrawn(population: CalibrationTable, random: np.random.Generator, samples: int) -> CalibrationTable:
    rows = random.integers(len(population.label), size=samples)
    return CalibrationTable(
        "redraw",
        population.options,
        population.confidence[rows],
        population.prediction[rows],
        population.label[rows],
    )


@dataclass(frozen=True, slots=True)
class Redraw:
    """certified: names of the tests under which something was. exceeds: those under which it should not have been."""

    choice_exceeds: bool
    certified: frozenset[str]
    exceeds: frozenset[str]


def redraws(population: CalibrationTable, setting: Setting, count: int, seed: int) -> Iterator[Redraw]:
    latency, graph = network()
    random = np.random.default_rng(seed)

    def too_bad(design: Design) -> bool:
        return Counts.of_design(population, design).drop > setting.epsilon

    for redraw in range(count):
        searched, unseen = hold_out(redrawn(population, random, setting.samples), seed=redraw)
        designs = ladder(searched, latency, graph, setting.sla, space=SPACE, strategy=GRID_ONLY).designs
        found = {
            name: certify(designs, unseen, epsilon=setting.epsilon, delta=setting.delta, test=test)
            for name, test in TESTS.items()
        }
        certified = frozenset(name for name, (_, certificate) in found.items() if certificate.certified)
        exceeds = frozenset(name for name in certified if too_bad(found[name][0]))
        yield Redraw(too_bad(designs[-1]), certified, exceeds)


def searched_rows(population: CalibrationTable, setting: Setting, count: int, seed: int) -> Iterator[dict]:
    """One row a test."""
    found = list(redraws(population, setting, count, seed))
    for name in TESTS:
        certified = sum(name in redraw.certified for redraw in found)
        exceeds = sum(name in redraw.exceeds for redraw in found)
        yield asdict(setting) | {
            "test": name,
            "choice_exceeds": sum(redraw.choice_exceeds for redraw in found) / count,
            "certified": certified / count,
            "exceeds": exceeds,
            "of_certified": exceeds / certified if certified else None,
            **verdict(exceeds, count, setting.delta),
        }


def limit_row(limit: Limit, count: int, seed: int) -> dict:
    random = np.random.default_rng(seed)
    lost_share = limit.epsilon + limit.gained_share
    shares = [lost_share, limit.gained_share, 1 - lost_share - limit.gained_share]
    drawn = random.multinomial(limit.samples, shares, size=count).tolist()
    certified = sum(passes(Counts(limit.samples, lost, gained), limit) for lost, gained, _ in drawn)
    return asdict(limit) | {"certified": certified / count, **verdict(certified, count, limit.delta)}


@functools.cache
def passes(counts: Counts, limit: Limit) -> bool:
    test: LossTest = TESTS[limit.test]
    return test.p_value(counts, limit.epsilon, limit.delta) <= limit.delta


def verdict(exceeds: int, count: int, delta: float) -> dict:
    interval = binomtest(exceeds, count).proportion_ci(0.95, method="exact")
    return {
        "of_redraws": exceeds / count,
        "interval_95": [float(interval.low), float(interval.high)],
        "holds": bool(interval.low <= delta),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--redraws", type=int, default=1000, help="for each setting")
    parser.add_argument("--population", type=int, default=200_000, help="samples that are the truth")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    started_s = time.perf_counter()
    population = answers(np.random.default_rng(args.seed), args.population)
    searched = [
        row for setting in SETTINGS for row in searched_rows(population, setting, args.redraws, args.seed + 1)
    ]
    at_the_limit = [limit_row(limit, 20 * args.redraws, args.seed + 2) for limit in LIMITS]
    result = {
        "redraws": args.redraws,
        "population": args.population,
        "searched": searched,
        "at_the_limit": at_the_limit,
        "holds": all(row["holds"] for row in searched + at_the_limit),
        "seconds": round(time.perf_counter() - started_s, 1),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
