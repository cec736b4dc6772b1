"""The candidate exits of a backbone."""

from __future__ import annotations

from hapi_tvm.errors import NoLegalCut
from hapi_tvm.importing import Backbone
from hapi_tvm.passes.dataflow import bindings
from hapi_tvm.passes.find_cuts import find_cuts
from hapi_tvm.passes.flops import op_flops
from hapi_tvm.records import Candidate, ExitGraph

BRANCH_KINDS = ("linear", "conv")


def exit_graph(
    backbone: Backbone,
    spacing: float = 0.0,
    kinds: tuple[str, ...] = BRANCH_KINDS,
    *,
    may_be_empty: bool = False,
) -> ExitGraph:
    """Every cut of the backbone as a candidate ``exit_00``, ``exit_01``, ... in network order.

    spacing: least share of the backbone's operations between two candidates, in [0, 1].
    Where the network has no place for an exit: NoLegalCut, or no candidates with ``may_be_empty``.
    """
    try:
        cuts = find_cuts(backbone.module, spacing)
    except NoLegalCut:
        if not may_be_empty:
            raise
        cuts = ()
    candidates = tuple(
        Candidate(f"exit_{index:02d}", cut.tensor, cut.shape, cut.dtype, cut.flops_before, cut.flops_share)
        for index, cut in enumerate(cuts)
    )
    flops = sum(op_flops(binding.value) for binding in bindings(backbone.module["main"]))
    return ExitGraph(backbone.hash, backbone.classes, flops, candidates, kinds)
