"""A network of two exits, compiled whole for a target with untuned schedules, to be run wherever that is."""

from __future__ import annotations

import pathlib

import tvm
from torch import nn

from hapi_tvm.compiling import compile_design
from hapi_tvm.exits import exit_graph
from hapi_tvm.importing import import_model
from hapi_tvm.network import read_network
from hapi_tvm.passes.pipeline import lower_everything
from hapi_tvm.targets import Target
from hapi_tvm.tuning import best_schedules
from tests.test_families import branch_weights, to_onnx, two_exits


def compiled(model: nn.Module, target: Target, folder: pathlib.Path) -> tvm.runtime.Executable:
    """``model`` takes ``families.IMAGE_SHAPE``. folder: for a database of kernels."""
    backbone = import_model(to_onnx(model))
    graph = exit_graph(backbone)
    tensors = [candidate.tensor for candidate in graph.candidates]
    weights = branch_weights(graph)
    lowered = lower_everything(backbone.module, tensors, weights, target.tvm_target, target.vector_width)
    network = read_network(lowered, graph)
    schedules = best_schedules(network.kernels.values(), target, folder)
    return compile_design(network.module, two_exits(graph), {}, schedules, target)
