"""A small network with convolutions that Winograd computes too, imported, and cut for lowering in any way."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import nn

import hapi_tvm as hapi
from hapi_tvm.algorithms import Algorithms
from hapi_tvm.exits import exit_graph
from hapi_tvm.heads import HEADS
from hapi_tvm.importing import Backbone
from hapi_tvm.passes.pipeline import cut
from hapi_tvm.passes.winograd import ConvolutionShape
from hapi_tvm.records import ExitGraph
from tests.families import BasicBlock, classifier, conv_norm_relu, seeded

TARGET = hapi.targets.llvm()
IMAGE_SHAPE = (1, 3, 12, 12)


def _shape(channels: int, size: int) -> ConvolutionShape:
    """Of a convolution from ``channels`` to as many, padded to the same size."""
    lanes = TARGET.vector_width
    blocks = channels // lanes
    return ConvolutionShape((1, blocks, size + 2, size + 2, lanes), (blocks, channels, 3, 3, lanes))


EARLY, LATE = _shape(16, 12), _shape(32, 6)


@functools.cache
def backbone() -> Backbone:
    """Three convolutions of the shape EARLY and one of LATE; Winograd computes no other."""

    def build() -> nn.Module:
        blocks = (conv_norm_relu(16, 16, 3), BasicBlock(16, 16, 1), BasicBlock(16, 32, 2))
        return nn.Sequential(conv_norm_relu(3, 16, 3), *blocks, *classifier(32))

    return hapi.import_model(seeded(build, seed=0), torch.zeros(IMAGE_SHAPE))


def plain_graph() -> ExitGraph:
    return replace(exit_graph(backbone()), candidates=())


def algorithms(graph: ExitGraph) -> Algorithms:
    """Every branch of ``graph`` has random weights."""
    weights = {
        option: HEADS[option.kind](graph.candidates[option.candidate].shape[1], graph.classes).eval().export(1.0)
        for option in graph.options
    }
    tensors = [candidate.tensor for candidate in graph.candidates]
    pieces = cut(backbone().module, tensors, weights, TARGET.tvm_target, TARGET.vector_width)
    return Algorithms(pieces, graph, TARGET.tvm_target)
