"""Designs with given exits, as the search would return them."""

from __future__ import annotations

from dataclasses import replace

from hapi_tvm.hashing import digest
from hapi_tvm.records import SLA, CalibrationTable, Design, ExitGraph, LatencyTable
from hapi_tvm.search import describe
from hapi_tvm.search.instance import Exits, Instance


def design_of(calibration: CalibrationTable, latency: LatencyTable, graph: ExitGraph, exits: Exits) -> Design:
    instance = Instance.from_tables(calibration, latency)
    sla = SLA(max_accuracy_drop=0.01)
    design = describe.design_of(instance, graph, sla, exits, space="", proven_optimal=False)
    return replace(design, provenance={"calibration": digest(calibration)})
