"""Lowering a network in several algorithms, and the choice among their times."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hapi_tvm import turns
from hapi_tvm.algorithms import DIRECT, Algorithms, backbone_chain, cheapest, drop_slow, kernels_of, sum_by_shape
from hapi_tvm.choices import FILE, Choice, latest, store
from hapi_tvm.exits import exit_graph
from hapi_tvm.network import expected_reach
from hapi_tvm.passes.winograd import ConvolutionShape
from hapi_tvm.records import ExitGraph
from tests import winograd_job
from tests.winograd_job import EARLY, LATE

SHAPES = [ConvolutionShape((1, 1, 9 + index, 9, 16), (1, 16, 3, 3, 16)) for index in range(3)]
SMALL, OTHER, THIRD = SHAPES


GRAPHS = {"plain": winograd_job.plain_graph(), "with exits": exit_graph(winograd_job.backbone())}
BOTH = {EARLY: frozenset({2, 4}), LATE: frozenset({4})}


@pytest.fixture(scope="module", params=GRAPHS)
def graph(request) -> ExitGraph:
    return GRAPHS[request.param]


@pytest.fixture(scope="module")
def algorithms(graph) -> Algorithms:
    return winograd_job.algorithms(graph)


def test_the_fastest_tile_wins_where_it_beats_the_direct_sum_by_the_margin():
    times_us = {SMALL: {0: 100.0, 2: 80.0, 4: 70.0}, OTHER: {0: 100.0, 2: 98.0, 4: 120.0}, THIRD: {}}
    assert cheapest(times_us, 0.03) == {SMALL: 4}
    assert cheapest(times_us, 0.01) == {SMALL: 4, OTHER: 2}
    assert cheapest({SMALL: {0: 10.0, 2: math.inf, 4: math.nan}}, 0.03) == {}


@given(
    st.dictionaries(
        st.sampled_from(SHAPES), st.fixed_dictionaries({tile: st.floats(1e-3, 1e6) for tile in (0, 2, 4)}), min_size=1
    ),
    st.floats(0, 0.5),
)
def test_no_other_mixture_within_the_margin_is_faster(times_us, margin):
    chosen = cheapest(times_us, margin)
    for shape, row in times_us.items():
        allowed = [DIRECT, *(tile for tile in (2, 4) if row[tile] < (1 - margin) * row[DIRECT])]
        assert row[chosen.get(shape, DIRECT)] == min(row[tile] for tile in allowed)


def test_slow_and_failed_tiles_are_dropped():
    times_us = {SMALL: {0: 100.0, 2: 114.0, 4: 116.0}, OTHER: {0: 100.0, 2: math.inf, 4: math.nan}}
    assert drop_slow(times_us, 1.15) == {SMALL: frozenset({2}), OTHER: frozenset()}


def test_places_are_where_the_convolutions_are(algorithms, graph):
    assert algorithms.shapes == {EARLY, LATE}
    variants = algorithms.variants(BOTH)
    assert list(variants) == [0, 2, 4]
    places = algorithms.places(variants)
    assert [place.shape for place in places] == [EARLY, EARLY, EARLY, LATE]
    assert [place.index for place in places] == sorted({place.index for place in places})
    reach = [place.reach for place in places]
    assert reach == sorted(reach, reverse=True) and set(reach) <= set(expected_reach(graph))


def test_the_variants_differ_at_their_places_only(algorithms):
    variants = algorithms.variants(BOTH)
    direct, by_two, by_four = (backbone_chain(variants[tile]) for tile in (0, 2, 4))
    places = algorithms.places(variants)
    early = {place.index for place in places if place.shape == EARLY}
    everywhere = {place.index for place in places}
    assert {i for i, (one, other) in enumerate(zip(direct, by_two, strict=True)) if one != other} == early
    assert {i for i, (one, other) in enumerate(zip(direct, by_four, strict=True)) if one != other} == everywhere
    names = {variants[4].kernels[by_four[index]].name for index in everywhere}
    assert all("winograd" in name for name in names)


def test_a_winograd_kernel_has_the_weight_of_its_place(algorithms):
    variants = algorithms.variants(BOTH)
    places = algorithms.places(variants)
    weight = {kernel.key: kernel.weight for kernel in kernels_of(variants, places)}
    assert set(algorithms.direct.kernels) < set(weight)
    for network in variants.values():
        for place in places:
            one, other = backbone_chain(network)[place.index], backbone_chain(algorithms.direct)[place.index]
            assert weight[one] == weight[other]


def test_times_are_summed_over_the_places_of_a_shape(algorithms):
    variants = algorithms.variants(BOTH)
    places = algorithms.places(variants)
    calls = len(backbone_chain(algorithms.direct))
    times_us = {0: [1.0] * calls, 2: [10.0] * calls, 4: [100.0] * calls}
    sums = sum_by_shape(variants, places, times_us)
    early = sum(place.reach for place in places if place.shape == EARLY)
    late = sum(place.reach for place in places if place.shape == LATE)
    assert sums == {
        EARLY: pytest.approx({0: early, 2: 10 * early, 4: 100 * early}),
        LATE: pytest.approx({0: late, 4: 100 * late}),
    }


def test_a_mixture_is_lowered_once_and_the_pieces_stay(algorithms):
    network = algorithms.network({EARLY: 2})
    assert algorithms.network({EARLY: 2}) is network
    assert algorithms.network({}) is algorithms.direct


CHOICE = Choice(
    "network", "schedules", {SMALL: {0: 3.5, 2: 4.5, 4: 2.5}, OTHER: {0: 1.0, 2: 2.0}, THIRD: {}}, {SMALL: 4}
)


def test_the_latest_choice_for_a_network_is_found(tmp_path):
    assert latest(tmp_path, "network") is None
    store(tmp_path, Choice("network", "before", {}, {}))
    store(tmp_path, CHOICE)
    store(tmp_path, Choice("another", "schedules", {}, {}))
    found = latest(tmp_path, "network")
    assert found == CHOICE
    assert found.trials == {SMALL: {2, 4}, OTHER: {2}, THIRD: frozenset()}


def damaged(change) -> str:
    line = {
        "network": "network",
        "schedules": "later",
        "shapes": [
            {"data": [1, 1, 9, 9, 16], "weight": [1, 16, 3, 3, 16], "in_place_us": [[0, 1.0], [2, 0.5]], "tile": 2}
        ],
    }
    change(line)
    return json.dumps(line)


@pytest.mark.parametrize(
    "line",
    [
        '{"network": "network", "sched',
        "[1, 2]",
        "null",
        damaged(lambda line: line.pop("schedules")),
        damaged(lambda line: line.update(schedules=3)),
        damaged(lambda line: line.update(shapes=[7])),
        damaged(lambda line: line["shapes"][0].update(tile=3)),
        damaged(lambda line: line["shapes"][0].update(tile=4)),
        damaged(lambda line: line["shapes"][0].update(tile=[2])),
        damaged(lambda line: line["shapes"][0].update(data=[1, 2])),
        damaged(lambda line: line["shapes"][0].update(data=[1, 1, 9, 9, "x"])),
        damaged(lambda line: line["shapes"][0].update(data=None)),
        damaged(lambda line: line["shapes"][0].update(in_place_us=[[0, math.nan]])),
        damaged(lambda line: line["shapes"][0].update(in_place_us=[[7, 1.0]])),
        damaged(lambda line: line["shapes"][0].update(in_place_us=[[[], 1.0]])),
        damaged(lambda line: line["shapes"][0].update(in_place_us=[[2, 1.0]])),
    ],
)
def test_a_broken_line_costs_itself_only(tmp_path, line):
    store(tmp_path, CHOICE)
    with (tmp_path / FILE).open("a") as file:
        file.write(line + "\n")
    assert latest(tmp_path, "network") == CHOICE
    assert (tmp_path / f"{FILE}.broken-1").read_text() == line + "\n"
    store(tmp_path, Choice("network", "later", {}, {}))
    assert latest(tmp_path, "network").schedules == "later"


def test_the_line_that_the_damage_starts_from_is_whole(tmp_path):
    (tmp_path / FILE).write_text(damaged(lambda line: None) + "\n")
    assert latest(tmp_path, "network").schedules == "later"


def test_turns_warm_up_alternate_and_take_medians():
    log: list[str] = []
    values = {"one": iter(range(10_000)), "other": iter(range(10_000))}

    def sampler(name: str):
        def sample():
            log.append(name)
            value = float(next(values[name]))
            return [value, -value]

        return sample

    medians = turns.in_turns([sampler("one"), sampler("other")], clock=lambda: 0.0)
    calls = turns.RUNS + 1
    assert log == (["one"] * calls + ["other"] * calls) * turns.TURNS
    timed = [value for value in range(calls * turns.TURNS) if value % calls]
    for median in medians:
        np.testing.assert_array_equal(median, [np.median(timed), -np.median(timed)])


def test_long_turns_end_with_the_budget():
    now_s, count = 0.0, 0

    def sample() -> float:
        nonlocal now_s, count
        now_s += turns.BUDGET_S
        count += 1
        return 7.0

    (median,) = turns.in_turns([sample], clock=lambda: now_s)
    assert median == 7.0
    assert count == (turns.RUNS + 1) * turns.MIN_TURNS
