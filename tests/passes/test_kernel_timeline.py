"""KernelTimeline: the backbone's kernels, all of them and nothing else, one stamp behind each."""

from __future__ import annotations

import tvm
from tvm import relax

from hapi_tvm.passes.kernel_timeline import KernelTimeline
from hapi_tvm.timeline import TIMELINE
from tests.passes import networks, timelines


def plain() -> tvm.IRModule:
    return networks.routed(())


def test_the_timeline_calls_what_the_segment_called():
    found = networks.functions(KernelTimeline()(plain()))
    assert set(found) == {TIMELINE}
    assert networks.kernels(found[TIMELINE]) == networks.kernels(plain()["segment_00"])


def test_result_is_well_formed():
    relax.analysis.well_formed(KernelTimeline()(plain()))


def test_input_is_unchanged():
    networks.assert_leaves_its_input_alone(KernelTimeline(), plain())


def test_twice_equals_once():
    networks.assert_twice_equals_once(KernelTimeline(), plain())


def test_every_kernel_takes_its_time():
    calls = len(networks.kernels(plain()["segment_00"]))
    found_us = timelines.times_us(KernelTimeline()(plain()), networks.images(1)[0], calls)
    assert calls >= 4 and (found_us > 0).all() and found_us.sum() < 1e6
