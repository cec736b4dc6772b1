"""What the tuner, the surrogate and the search are told of a lowered network: kernels, chains, sizes."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import kernel_samples as samples
import numpy as np
import pytest
import torch
from torch import nn

from hapi_tvm import targets
from hapi_tvm.exits import exit_graph
from hapi_tvm.features import kernel_features
from hapi_tvm.heads import HEADS
from hapi_tvm.importing import import_model
from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.network import LoweredNetwork, read_network
from hapi_tvm.passes.pipeline import lower_everything
from hapi_tvm.records import Candidate, ExitGraph
from tests.families import FAMILIES, IMAGE_SHAPE
from tests.passes import networks

TARGET = targets.llvm()
FLOAT_BYTES = 4


@functools.cache
def lowered(family: str, lanes: int) -> tuple[nn.Module, ExitGraph, LoweredNetwork]:
    model = FAMILIES[family]()
    backbone = import_model(model, torch.zeros(IMAGE_SHAPE))
    graph = exit_graph(backbone)
    weights = {
        option: HEADS[option.kind](graph.candidates[option.candidate].shape[1], graph.classes).eval().export(1.0)
        for option in graph.options
    }
    tensors = [candidate.tensor for candidate in graph.candidates]
    module = lower_everything(backbone.module, tensors, weights, TARGET.tvm_target, lanes)
    return model, graph, read_network(module, graph)


def convolutions(model: nn.Module) -> list[tuple[nn.Conv2d, tuple[int, ...], tuple[int, ...]]]:
    """Each convolution as torch calls it, with the shapes of its input and output."""
    calls = []
    hooks = [
        part.register_forward_hook(lambda conv, x, y: calls.append((conv, tuple(x[0].shape), tuple(y.shape))))
        for part in model.modules()
        if isinstance(part, nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.zeros(IMAGE_SHAPE))
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize("lanes", [4, 16])
@pytest.mark.parametrize("family", ["vgg", "mobilenet_v2"])
def test_convolutions_are_described_as_torch_runs_them(family, lanes):
    model, _, network = lowered(family, lanes)
    called = [network.kernels[key] for chain in network.segments for key in chain]
    found = [kernel_features(kernel, TARGET) for kernel in called if "conv2d" in kernel.name]
    expected = convolutions(model)
    assert len(found) == len(expected)
    for features, (conv, inputs, outputs) in zip(found, expected, strict=True):
        window = math.prod(conv.kernel_size)
        assert features.operator == "conv2d"
        assert (features.in_channels, features.out_channels) == (conv.in_channels, conv.out_channels)
        assert (features.out_height, features.out_width) == outputs[2:]
        assert (features.kernel, features.stride, features.groups) == (window, conv.stride[0], conv.groups)
        multiplies = math.prod(outputs) * conv.in_channels // conv.groups * window
        # The fused bias and activation add a few operations for each output.
        assert 2 * multiplies <= features.flops <= 2 * multiplies + 12 * math.prod(outputs)
        read = math.prod(inputs) + conv.weight.numel()
        assert features.bytes_read >= FLOAT_BYTES * read
        assert features.bytes_read <= FLOAT_BYTES * (read + 2 * math.prod(outputs) + 4 * conv.out_channels)
        assert features.bytes_written == FLOAT_BYTES * math.prod(outputs)


@pytest.mark.parametrize(
    "func, name, operator, out_channels",
    [
        (samples.dense(64, 10), "fused_matmul_add", "dense", 10),
        (samples.mean(2, 7), "mean", "reduce", 32),
        (samples.depthwise(32, 14), "fused_conv2d_blocked_add_relu", "conv2d", 32),
    ],
)
def test_operators_and_logical_channels(func, name, operator, out_channels):
    features = kernel_features(Kernel(kernel_key(func), name, func), TARGET)
    assert (features.operator, features.out_channels) == (operator, out_channels)
    assert features.flops > 0 and features.bytes_read > features.bytes_written > 0


def test_the_target_is_part_of_the_features():
    func = samples.dense(64, 10)
    kernel = Kernel(kernel_key(func), "matmul", func)
    other = replace(TARGET, vector_width=2 * TARGET.vector_width, threads=7)
    found = kernel_features(kernel, other)
    assert (found.vector_width, found.threads) == (2 * TARGET.vector_width, 7)
    assert replace(found, vector_width=TARGET.vector_width, threads=TARGET.threads) == kernel_features(kernel, TARGET)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_of_every_family_has_finite_features(family):
    _, _, network = lowered(family, 16)
    for kernel in network.kernels.values():
        features = kernel_features(kernel, TARGET)
        sizes = (features.out_channels, features.out_height, features.out_width, features.in_channels)
        assert all(size >= 1 for size in (*sizes, features.kernel, features.stride, features.groups))
        assert np.isfinite(features.flops) and features.bytes_written >= FLOAT_BYTES


def test_chains_are_the_calls_of_each_function_in_order():
    module = networks.lowered()
    functions = networks.functions(module)
    graph = graph_of_networks()
    network = read_network(module, graph)
    kernels = {var.name_hint: func for var, func in module.functions_items()}

    def keys(name: str) -> tuple[str, ...]:
        return tuple(kernel_key(kernels[called]) for called in networks.kernels(functions[name]))

    assert network.segments == tuple(keys(f"segment_{i:02d}") for i in range(len(networks.TENSORS) + 1))
    assert network.branches == tuple(keys(f"exit_{o.candidate:02d}_{o.kind}") for o in graph.options)
    called = [key for chain in (*network.segments, *network.branches) for key in chain]
    assert list(network.kernels) == list(dict.fromkeys(called))
    assert len(network.kernels) < len(called), "nothing is shared: the test shows little"


def graph_of_networks() -> ExitGraph:
    """The exit graph that belongs to ``networks.backbone``; its options in the order of its branches."""
    candidates = tuple(
        Candidate(f"exit_{i:02d}", tensor, (1, channels, 8, 8), "float32", 1000 * (i + 1), 0.25 * (i + 1))
        for i, (tensor, channels) in enumerate(zip(networks.TENSORS, networks.CHANNELS, strict=True))
    )
    return ExitGraph("hash", networks.CLASSES, 4000, candidates, ("conv", "linear"))


def test_weights_follow_the_work_and_the_share_of_samples():
    """A kernel called twice as early carries more than one called once late; all weights are positive."""
    _, graph, network = lowered("mobilenet_v2", 16)
    calls = [key for chain in network.segments for key in chain]
    flops = {key: kernel_features(kernel, TARGET).flops for key, kernel in network.kernels.items()}
    backbone_only = set(calls) - {key for chain in network.branches for key in chain}
    for key in backbone_only:
        most = calls.count(key) * (1 + flops[key])
        assert most / 2 <= network.kernels[key].weight <= most
    branch_only = {key for chain in network.branches for key in chain} - set(calls)
    placed = 4 / len(graph.options)
    for key in branch_only:
        count = sum(chain.count(key) for chain in network.branches)
        assert network.kernels[key].weight == pytest.approx(placed * count * (1 + flops[key]))
