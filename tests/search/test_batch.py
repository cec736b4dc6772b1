"""Designs in batches against the evaluator, design by design."""

from __future__ import annotations

import numpy as np
import pytest
from instances import network, small

from hapi_tvm.records import SLA
from hapi_tvm.search.batch import Batch
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.space import Space

FIGURES = ("total_ps", "lost", "gained", "p95_ps", "p99_ps", "worst_ps", "deadline_ps", "exits")


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_equals_the_evaluator(seed, shared):
    make = network if seed % 2 else small
    calibration, latency, _ = make(seed, samples=40 + 30 * seed, candidates=1 + seed % 5, kinds=1 + seed % 3)
    options = len(calibration.options)
    space = Space(shared=shared, grid=5, must=frozenset({0}), option_bytes=tuple(range(options)), max_bytes=options)
    sla = SLA(deadline_ms=0.1, max_exits=2) if seed % 3 else SLA(max_accuracy_drop=0.1, max_exits=2)
    problem = Problem.of(calibration, latency, sla, space)
    batch = Batch(problem)
    genes = np.random.default_rng(seed).integers(0, batch.genes, (80, len(batch.genes)))
    figures, fits = batch.figures(genes), batch.fits(genes)
    for row in range(len(genes)):
        exits = batch.exits(genes[row])
        expected = problem.figures(exits)
        for name in FIGURES:
            assert getattr(figures, name)[row] == getattr(expected, name)
        assert fits[row] == problem.holds(exits)


def test_the_genes_reach_every_choice_and_nothing_else():
    calibration, latency, _ = network(0, samples=100, candidates=3, kinds=2)
    space = Space(grid=4, must_not=frozenset({1}), kinds=("kind_1",))
    problem = Problem.of(calibration, latency, SLA(max_accuracy_drop=0.1), space)
    batch = Batch(problem)
    assert batch.genes == (5, 1, 5)
    (layer,) = problem.layers
    reached = {batch.exits(genes) for genes in np.ndindex(batch.genes)}
    alone = {exits[0] for exits in reached if len(exits) == 1}
    assert alone == set(zip(layer.option.tolist(), layer.threshold.tolist(), strict=True))
    assert len(reached) == 25
