"""PieceTimeline: every step is called in order, on what it is to read, and timed by itself."""

from __future__ import annotations

import numpy as np
import pytest
from tvm import relax

from hapi_tvm.passes.cut_segments import exit_name, segment_name
from hapi_tvm.passes.piece_timeline import NOTHING, PieceTimeline
from hapi_tvm.timeline import TIMELINE, Step
from tests.passes import networks, timelines

SEGMENTS = timelines.chain(*(segment_name(index) for index in range(4)))
# The branch at the second candidate, behind its segment, which runs again.
STEPS = [*SEGMENTS, Step(segment_name(1), 0), Step(exit_name(networks.OPTIONS[2]), 4)]


def test_a_piece_that_does_nothing_and_then_every_step_on_what_it_reads():
    timeline = PieceTimeline(STEPS)(networks.lowered())[TIMELINE]
    bindings = [binding for block in timeline.body.blocks for binding in block.bindings]
    assert [binding.value.op.name_hint for binding in bindings] == [NOTHING, *(step.function for step in STEPS)]
    x, results = timeline.params[0], [binding.var for binding in bindings[1:]]
    read = [binding.value.args[0] for binding in bindings[1:]]
    assert all(
        var.same_as(x if step.reads is None else results[step.reads]) for var, step in zip(read, STEPS, strict=True)
    )


def test_result_is_well_formed():
    relax.analysis.well_formed(PieceTimeline(STEPS)(networks.lowered()))


def test_input_is_unchanged():
    networks.assert_leaves_its_input_alone(PieceTimeline(STEPS), networks.lowered())


def test_twice_equals_once():
    networks.assert_twice_equals_once(PieceTimeline(STEPS), networks.lowered())


def test_every_step_of_a_network_takes_its_time():
    found_us = timelines.times_us(PieceTimeline(STEPS)(networks.lowered()), networks.images(1)[0], 1 + len(STEPS))
    assert (found_us > 0).all() and found_us.sum() < 1e6


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_the_step_that_sleeps_is_the_one_that_took_long(slow):
    names = ["quick"] * 3
    names[slow] = "slow"
    mod = PieceTimeline(timelines.chain(*names))(timelines.napping())
    _, *found_us = timelines.times_us(mod, np.zeros(timelines.SHAPE, np.float32), 4)
    assert [took_us >= timelines.NAP_US for took_us in found_us] == [name == "slow" for name in names]
