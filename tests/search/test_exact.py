"""Branch and bound against every design there is, each put through the evaluator."""

from __future__ import annotations

import collections
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from brute import best_key, front
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import network, small, tables

from hapi_tvm.errors import SLAError
from hapi_tvm.hashing import digest
from hapi_tvm.records import LATENCY_LIMITS, SLA
from hapi_tvm.search import exact, frontier
from hapi_tvm.search.batch import Batch
from hapi_tvm.search.evaluator import evaluate
from hapi_tvm.search.exact import Exact
from hapi_tvm.search.front import grid_front
from hapi_tvm.search.objective import best_index
from hapi_tvm.search.problem import Problem
from hapi_tvm.search.space import Space

ON_GRID = Exact(polish=False)

# (candidates, kinds, most quantiles) whose designs, thresholds per exit, number at most about 2,000
SIZES = ((1, 1, 8), (1, 2, 8), (2, 1, 8), (2, 2, 8), (3, 1, 8), (3, 2, 5), (4, 1, 5), (4, 2, 2), (5, 1, 3))

# Likewise, of 6,561 or 59,049 designs
LARGE_SIZES = ((4, 1, 8), (4, 2, 4), (5, 1, 8), (5, 2, 4))

ASKED = ("drop", *LATENCY_LIMITS)


class Drawn(NamedTuple):
    problem: Problem
    sla: SLA


@st.composite
def problems(draw, asking: str | None = None, sizes=SIZES):
    """Small tables, and an SLA whose limits are figures of some design: tight, and now and then too tight.

    What is asked for is drawn by hypothesis, which likes small numbers; the sizes by the seed, which does not.
    asking: one of ASKED, which is then among the limits.
    """
    always = set() if asking is None else {asking}
    asked = draw(st.sets(st.sampled_from(ASKED), min_size=1 - len(always), max_size=3)) | always
    shared, confidence = draw(st.booleans()), draw(st.sampled_from([0.5, 0.8, 0.95, 0.999]))
    candidates, kinds, most = draw(st.sampled_from(sizes))
    random = np.random.default_rng([draw(st.integers(0, 2**32 - 1)), (None, *ASKED).index(asking)])
    made = small(int(random.integers(2**32)), samples=int(random.integers(1, 90)), candidates=candidates, kinds=kinds)
    calibration, latency, _ = made
    option = int(random.integers(candidates * kinds))
    threshold = float(random.choice([0.0, *calibration.confidence[:, option]]))
    quantile = float(random.choice([0.5, 0.5, 0.9]))
    like = evaluate(
        calibration, latency, [(option, threshold)], drop_confidence=confidence, latency_quantile=quantile
    )
    slack = random.choice([0.9, 1.0, 1.0, 1.3])
    limits = {
        field: max(slack * getattr(like, f"{metric}_us") / 1000, 1e-6)
        for metric, field in LATENCY_LIMITS.items()
        if metric in asked
    }
    if "drop" in asked:
        limits["max_accuracy_drop"] = min(max(like.accuracy_drop_upper, 0.0), 1.0)
    sla = SLA(**limits, drop_confidence=confidence, latency_quantile=quantile, max_exits=int(random.integers(1, 7)))
    grid = 8 if shared else int(random.integers(max(1, most - 2), most + 1))
    space = some_space(random, candidates, kinds, shared, grid, sla.max_exits)
    return Drawn(Problem.of(calibration, latency, sla, space), sla)


def traits(drawn: Drawn, best) -> set[str]:
    """What a drawn problem is an example of. best: its least key, or None."""
    space, sla = drawn.problem.space, drawn.sla
    held = {
        "one threshold": space.shared,
        "a threshold each": not space.shared,
        "must": bool(space.must),
        "must not": bool(space.must_not),
        "one kind of two": space.kinds is not None and not drawn.problem.allowed.all(),
        "size": space.max_bytes is not None,
        "robust": sla.latency_quantile > 0.5,
        "plain estimate of the drop": sla.max_accuracy_drop is not None and sla.drop_confidence == 0.5,
        "limit of the drop": sla.max_accuracy_drop is not None and sla.drop_confidence > 0.5,
        "several limits": len(drawn.problem.objective.limits) > 1,
        "feasible": best is not None,
        "infeasible": best is None,
    }
    return {name for name, holds in held.items() if holds}


def some_space(random, candidates: int, kinds: int, shared: bool, grid: int, max_exits: int) -> Space:
    """Half of them without limits."""
    if random.random() < 0.5:
        return Space(shared=shared, grid=grid)
    roles = random.choice(["may", "must", "must_not"], size=candidates, p=[0.7, 0.15, 0.15])
    sizes = tuple(random.integers(0, 4, candidates * kinds).tolist())
    return Space(
        shared=shared,
        grid=grid,
        kinds=("kind_0",) if random.random() < 0.3 else None,
        must=frozenset(np.flatnonzero(roles == "must")[:max_exits].tolist()),
        must_not=frozenset(np.flatnonzero(roles == "must_not").tolist()),
        option_bytes=sizes,
        max_bytes=int(sum(sizes) * 0.6) if random.random() < 0.5 else None,
    )


def solved(problem: Problem):
    return ON_GRID.solve(problem, seconds=math.inf)


def check(problem: Problem, best) -> None:
    """The search proves exactly the least key, with a design that has it; it finds none where there is none."""
    outcome = solved(problem)
    assert outcome.proven
    assert outcome.key == best
    if best is None:
        assert outcome.exits is None
    else:
        assert problem.feasible(outcome.exits)
        assert problem.key(outcome.exits) == best
        assert outcome.floor == best[0]


@pytest.mark.parametrize("asking", ASKED)
def test_equals_brute_force(asking):
    """100 problems with each kind of limit among theirs, 600 in all, and no trait of a problem is rare."""
    seen, different = collections.Counter(), set()

    @settings(max_examples=100, deadline=None, derandomize=True)
    @given(problems(asking))
    def run(drawn):
        best = best_key(drawn.problem)
        check(drawn.problem, best)
        seen.update(traits(drawn, best))
        different.add(digest(drawn.sla, drawn.problem.instance.confidence))

    run()
    assert len(different) >= 90
    for trait, least in LEAST_SEEN.items():
        assert seen[trait] >= least, f"{trait}: {seen[trait]}"


LEAST_SEEN = {
    "one threshold": 20,
    "a threshold each": 20,
    "must": 5,
    "must not": 5,
    "one kind of two": 3,
    "size": 10,
    "robust": 15,
    "plain estimate of the drop": 10,
    "limit of the drop": 10,
    "several limits": 30,
    "feasible": 30,
    "infeasible": 3,
}
"""Of 100 problems."""


def best_of_all(problem: Problem):
    """As ``best_key``, for many designs: all at once by ``Batch``, which its own tests hold to the evaluator."""
    batch = Batch(problem)
    genes = np.indices(batch.genes).reshape(len(batch.genes), -1).T
    figures = batch.figures(genes)
    key = problem.objective.key(figures)
    best = best_index(key, batch.fits(genes) & problem.objective.feasible(figures))
    return None if best is None else tuple(part[best].item() for part in key)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(problems(sizes=LARGE_SIZES))
def test_equals_all_designs_of_a_larger_grid(drawn):
    check(drawn.problem, best_of_all(drawn.problem))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems())
def test_nearest_equals_brute_force(drawn):
    problem = drawn.problem.asking(drawn.problem.objective.nearest())
    check(problem, best_key(problem))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), st.data())
def test_closest_to_one_limit_equals_brute_force(drawn, data):
    objective = drawn.problem.objective
    limit = data.draw(st.sampled_from(objective.limits))
    for asked in (objective.closest_to(limit), objective.alone(limit).closest_to(limit)):
        problem = drawn.problem.asking(asked)
        check(problem, best_key(problem))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems())
def test_front_equals_brute_force(drawn):
    problem = drawn.problem
    found = grid_front(problem)
    assert found.proven
    assert [(total_ps, drop, len(exits)) for total_ps, drop, exits in found.points] == front(problem)
    for total_ps, drop, exits in found.points:
        figures = problem.figures(exits)
        assert problem.holds(exits) and (figures.total_ps, figures.lost - figures.gained) == (total_ps, drop)


@pytest.mark.parametrize("seed", range(6))
def test_equals_brute_force_on_a_likely_network(seed):
    """Several words of samples, correlated exits, two kinds: what the random tables do not look like."""
    calibration, latency, _ = network(seed, samples=300, candidates=3)
    whole_ms = evaluate(calibration, latency, []).mean_us / 1000
    for sla in (
        SLA(max_accuracy_drop=0.03, max_exits=3),
        SLA(max_accuracy_drop=0.03, drop_confidence=0.5, worst_latency_ms=1.1 * whole_ms, max_exits=3),
        SLA(mean_latency_ms=0.7 * whole_ms, max_exits=3),
        SLA(p95_latency_ms=0.95 * whole_ms, max_exits=2),
        SLA(deadline_ms=0.8 * whole_ms, max_exits=3),
    ):
        problem = Problem.of(calibration, latency, sla, Space(grid=5))
        check(problem, best_key(problem))


def test_small_nodes_walked_or_expanded_make_no_difference(monkeypatch):
    calibration, latency, _ = network(6, samples=300, candidates=6)
    for sla in (SLA(max_accuracy_drop=0.02, max_exits=3), SLA(mean_latency_ms=0.1, max_exits=3)):
        problem = Problem.of(calibration, latency, sla, Space(grid=6))
        walked = solved(problem)
        with monkeypatch.context() as patch:
            patch.setattr(frontier, "SMALL_WORDS", 0)
            expanded = solved(problem)
        with monkeypatch.context() as patch:
            patch.setattr(frontier, "SLICE_WORDS", 0)
            sliced = solved(problem)
        assert walked.key == expanded.key == sliced.key and expanded.proven and sliced.proven
        assert walked.exits == sliced.exits


@pytest.mark.parametrize("sla", [SLA(max_accuracy_drop=0.02, max_exits=3), SLA(mean_latency_ms=0.2, max_exits=3)])
def test_stopped_at_any_moment_it_holds_a_design_and_a_true_floor(sla, monkeypatch):
    monkeypatch.setattr(frontier, "SMALL_WORDS", 1e5)
    monkeypatch.setattr(frontier, "SLICE_WORDS", 0)
    calibration, latency, _ = network(3, samples=500, candidates=6)
    problem = Problem.of(calibration, latency, sla, Space(grid=6))
    optimum = solved(problem).key[0]
    proven = []
    for ticks in [*range(0, 24), 40, 80, 10_000_000]:
        time_s = itertools.count()
        outcome = ON_GRID.solve(problem, seconds=ticks, clock=time_s.__next__)
        assert outcome.floor <= optimum
        if outcome.exits is not None:
            assert problem.feasible(outcome.exits) and optimum <= outcome.key[0]
        proven.append(outcome.proven)
    assert not proven[0] and proven[-1]


@pytest.mark.parametrize("sla, cost", [(SLA(mean_latency_ms=0.2), 1), (SLA(p95_latency_ms=0.2), exact.TAIL_COST)])
def test_a_tree_that_the_time_does_not_suffice_for_leaves_it_to_the_local_search(sla, cost):
    calibration, latency, _ = network(3, samples=500, candidates=6)
    problem = Problem.of(calibration, latency, sla, Space(grid=6))
    words = exact._Run(problem, 0, itertools.count().__next__, 1.0).tree_words
    for seconds, endless in ((0.99, True), (1.01, False)):
        given = seconds * cost * words / exact.FINITE_WORDS
        assert exact._Run(problem, 0, itertools.count().__next__, given).endless == endless


def test_polish_is_never_worse_and_keeps_the_limits():
    for seed in range(6):
        calibration, latency, _ = network(seed, samples=300, candidates=5)
        for shared in (False, True):
            space = Space(grid=6, shared=shared, must=frozenset({2}), kinds=("kind_1",))
            problem = Problem.of(calibration, latency, SLA(max_accuracy_drop=0.04, drop_confidence=0.5), space)
            rough, fine = solved(problem), Exact().solve(problem, seconds=60)
            assert fine.proven and fine.key <= rough.key and problem.feasible(fine.exits)
            assert fine.floor <= fine.key[0]


def test_same_input_same_answer_and_a_falling_trace():
    calibration, latency, _ = network(5, samples=300, candidates=8)
    problem = Problem.of(calibration, latency, SLA(max_accuracy_drop=0.02, max_exits=3), Space(grid=12))
    first, again = (Exact().solve(problem, seconds=300, seed=seed) for seed in (0, 1))
    assert (first.exits, first.key, first.floor, first.designs) == (again.exits, again.key, again.floor, again.designs)
    keys = [step.key for step in first.trace]
    assert keys == sorted(keys, reverse=True) and keys[-1] == first.key
    assert [step.seconds for step in first.trace] == sorted(step.seconds for step in first.trace)


def test_a_deadline_before_the_end_needs_an_exit_that_answers_everyone():
    """Nobody in the split passes exit 0 at its least confidence, but a new sample might."""
    calibration, latency, _ = tables([[0.5], [0.9]], [[True, True], [False, True]], [1, 9], [1])
    problem = Problem.of(calibration, latency, SLA(deadline_ms=0.002), Space())
    outcome = solved(problem)
    assert outcome.exits == ((0, 0.0),) and outcome.key == (1, 4_000_000, 1)
    assert problem.figures(((0, 0.5),)).deadline_ps == 11_000_000


def test_equal_latency_is_settled_by_accuracy_then_by_fewer_exits():
    """Two exits that everyone takes at the same cost; the second answers one sample more."""
    right = [[True, True, True], [False, True, True]]
    calibration, latency, _ = tables([[1, 1], [1, 1]], right, [1, 0, 5], [0, 0])
    outcome = solved(Problem.of(calibration, latency, SLA(max_accuracy_drop=1.0), Space(grid=4)))
    assert [option for option, _ in outcome.exits] == [1]


@pytest.mark.parametrize("shared", [False, True])
def test_thresholds_are_confidences_that_occur(shared):
    calibration, latency, _ = network(0, samples=100, candidates=3)
    problem = Problem.of(calibration, latency, SLA(max_accuracy_drop=0.1), Space(grid=10, shared=shared))
    assert len(problem.layers) == (10 if shared else 1)
    for layer in problem.layers:
        assert layer.threshold.dtype == np.float32 and len(layer) == (6 if shared else 60)
        for option, threshold in zip(layer.option, layer.threshold, strict=True):
            occurs = calibration.confidence[:, :-1] if shared else calibration.confidence[:, option]
            assert threshold in occurs


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"grid": 0}, "grid=0 must be at least 1"),
        ({"must": frozenset({1}), "must_not": frozenset({1})}, "candidate 1 is in must and in must_not"),
        ({"must": frozenset({7})}, "must names candidate 7; there are 3"),
        ({"must": frozenset({0, 1, 2})}, "must names 3 candidates and SLA.max_exits=2"),
        ({"kinds": ("conv",)}, "kinds names 'conv'; the tables have kind_0, kind_1"),
        ({"max_bytes": 9}, "max_bytes=9 without option_bytes"),
        ({"option_bytes": (1, 2)}, "option_bytes has 2 sizes for 6 options"),
        ({"option_bytes": (1, -2)}, r"option_bytes\[1\] = -2"),
    ],
)
def test_a_space_that_contradicts_itself_or_the_tables(space, message):
    calibration, latency, _ = small(0, samples=5, candidates=3, kinds=2)
    with pytest.raises(SLAError, match=message):
        Problem.of(calibration, latency, SLA(max_accuracy_drop=0.1, max_exits=2), Space(**space))
