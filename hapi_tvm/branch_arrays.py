"""Trained branches as arrays in one file, ``branches.npz``: named ``candidate/kind/weight``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hapi_tvm.passes.attach_exits import BranchWeights
from hapi_tvm.records import ExitGraph, Option

__all__ = ["packed", "unpacked"]


def packed(weights: Mapping[Option, BranchWeights]) -> dict[str, np.ndarray]:
    return {
        f"{option.candidate}/{option.kind}/{name}": array
        for option, arrays in weights.items()
        for name, array in arrays.items()
    }


def unpacked(arrays: Mapping[str, np.ndarray], graph: ExitGraph) -> dict[Option, BranchWeights]:
    """What ``packed`` was given, in the order of the graph's options."""
    weights: dict[Option, BranchWeights] = {option: {} for option in graph.options}
    for name, array in arrays.items():
        candidate, kind, weight = name.split("/")
        weights[Option(int(candidate), kind)][weight] = array
    return weights
