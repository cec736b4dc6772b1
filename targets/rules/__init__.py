"""Schedules for CPU kernels: which rule serves which kernel, tuned and untuned."""

from __future__ import annotations

import logging

import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.rules.blocks import traced
from hapi_tvm.targets.rules.conv2d import find_convolution
from hapi_tvm.targets.rules.dense import find_dense, schedule_dense
from hapi_tvm.targets.rules.direct import schedule_convolution
from hapi_tvm.targets.rules.plain import schedule_plain
from hapi_tvm.targets.rules.spaces import convolution_space, stock_space, winograd_space
from hapi_tvm.targets.rules.tiles import default_tile
from hapi_tvm.targets.rules.vectors import VectorUnit
from hapi_tvm.targets.rules.winograd import find_winograd, schedule_winograd, winograd_families

__all__ = ["cpu_default_schedule", "cpu_space"]

logger = logging.getLogger(__name__)


def cpu_default_schedule(func: tvm.tirx.PrimFunc, unit: VectorUnit, threads: int) -> s_tir.Schedule | None:
    """A good schedule without any trial; None where the kernel is best left as it is."""
    schedule = traced(func)
    try:
        if (winograd := find_winograd(schedule)) is not None:
            family = winograd_families(winograd, unit, threads)[0]
            schedule_winograd(schedule, winograd, family, unit.lanes, threads)
        elif (convolution := find_convolution(schedule)) is not None:
            tile = default_tile(convolution, unit, threads)
            schedule_convolution(schedule, convolution, tile, unit.lanes, threads)
        elif (dense := find_dense(schedule)) is not None:
            schedule_dense(schedule, dense, unit, threads)
        else:
            schedule_plain(schedule, unit.lanes, threads)
    except s_tir.ScheduleError as error:
        logger.debug("the default rule does not fit %s: %s", func.attrs, error)
        return None
    return schedule


def cpu_space(func: tvm.tirx.PrimFunc, unit: VectorUnit, threads: int) -> ms.space_generator.SpaceGenerator:
    """The rules for convolutions with sampled tiles where they fit, else the stock rules of MetaSchedule."""
    schedule = traced(func)
    if find_winograd(schedule) is not None:
        return winograd_space(unit, threads)
    if find_convolution(schedule) is not None:
        return convolution_space(unit, threads)
    return stock_space(unit.lanes, threads)
