from __future__ import annotations

import pytest
from instances import network, small

from hapi_tvm.errors import InfeasibleSLA
from hapi_tvm.records import SLA
from hapi_tvm.search import Space, ladder, search

SPACE = Space(grid=8)


@pytest.mark.parametrize("seed", range(3))
def test_designs_grow_faster_and_end_with_the_searchs_choice(seed):
    calibration, latency, graph = network(seed, samples=1500, candidates=6)
    sla = SLA(max_accuracy_drop=0.03, max_exits=2, certify_delta=0.1)
    designs = ladder(calibration, latency, graph, sla, space=SPACE).designs
    assert designs[-1] == search(calibration, latency, graph, sla, space=SPACE)
    assert len(designs) >= 3
    assert len({design.exits for design in designs}) == len(designs)
    for safer, faster in zip(designs[:-1], designs[1:], strict=True):
        assert safer.predicted.mean_us > faster.predicted.mean_us
        assert safer.predicted.accuracy_drop_upper < faster.predicted.accuracy_drop_upper
    for share, design in zip((1.0, 0.75, 0.5, 0.25), reversed(designs), strict=False):
        assert design.exits and design.sla == sla
        assert design.predicted.accuracy_drop_upper <= share * 0.03


def test_rungs_that_miss_a_budget_are_left_out():
    calibration, latency, graph = network(1, samples=1500, candidates=6)
    free = ladder(calibration, latency, graph, SLA(max_accuracy_drop=0.03, max_exits=2), space=SPACE).designs
    budget_us = (free[0].predicted.mean_us + free[1].predicted.mean_us) / 2
    sla = SLA(max_accuracy_drop=0.03, max_exits=2, mean_latency_ms=budget_us / 1000)
    designs = ladder(calibration, latency, graph, sla, space=SPACE).designs
    assert 1 <= len(designs) < len(free) and designs[-1].exits == free[-1].exits
    assert all(design.predicted.mean_us <= budget_us for design in designs)


def test_the_plain_backbone_is_a_ladder_of_its_own():
    calibration, latency, graph = small(0, samples=30, candidates=2)
    designs = ladder(calibration, latency, graph, SLA(max_accuracy_drop=0.5, max_exits=0)).designs
    assert [design.exits for design in designs] == [()]


def test_an_sla_that_nothing_meets_is_told_as_by_the_search():
    calibration, latency, graph = network(1, samples=200, candidates=4)
    with pytest.raises(InfeasibleSLA, match="mean_latency_ms"):
        ladder(calibration, latency, graph, SLA(max_accuracy_drop=0.001, mean_latency_ms=0.001), space=SPACE)
