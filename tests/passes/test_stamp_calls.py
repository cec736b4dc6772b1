"""StampCalls: a clock before the first call of the timeline and behind each, and nothing else changed."""

from __future__ import annotations

import pytest
import tvm
from tvm import relax

from hapi_tvm.passes.piece_timeline import NOTHING, PieceTimeline
from hapi_tvm.passes.stamp_calls import StampCalls
from hapi_tvm.timeline import CLOCK_WORDS, TIMELINE
from tests.passes import networks, timelines

STEPS = timelines.chain("quick", "slow", "quick")


@pytest.fixture(scope="module")
def rewritten() -> tvm.IRModule:
    """As the pass meets it, behind the rewrite to destination passing."""
    return tvm.transform.Sequential(
        [relax.transform.ToNonDataflow(), relax.transform.RemovePurityChecking(), relax.transform.CallTIRRewrite()]
    )(PieceTimeline(STEPS)(timelines.napping()))


def called(function: relax.Function) -> list[str]:
    values = [binding.value for block in function.body.blocks for binding in block.bindings]
    return [value.op.name_hint for value in values if isinstance(value.op, tvm.ir.GlobalVar)]


def test_a_clock_before_the_first_call_and_behind_each(rewritten):
    timeline = StampCalls()(rewritten)[TIMELINE]
    expected = ["clock_000"]
    for index, name in enumerate([NOTHING, *(step.function for step in STEPS)], start=1):
        expected += [name, f"clock_{index:03d}"]
    assert called(timeline) == expected


def test_it_takes_the_stamps_and_returns_them(rewritten):
    timeline = StampCalls()(rewritten)[TIMELINE]
    assert timeline.body.body.same_as(timeline.params[-1])
    expected = relax.TensorType((len(STEPS) + 2, CLOCK_WORDS), "int64")
    tvm.ir.assert_structural_equal(timeline.params[-1].ty, expected)


def test_the_pieces_are_unchanged(rewritten):
    stamped = StampCalls()(rewritten)
    for name in ("quick", "slow", NOTHING):
        tvm.ir.assert_structural_equal(stamped[name], rewritten[name])


def test_a_module_without_a_timeline_is_left_alone():
    mod = networks.routed()
    assert StampCalls()(mod).same_as(mod)


def test_input_is_unchanged(rewritten):
    networks.assert_leaves_its_input_alone(StampCalls(), rewritten)


def test_twice_equals_once(rewritten):
    networks.assert_twice_equals_once(StampCalls(), rewritten)
