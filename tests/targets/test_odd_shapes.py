"""Odd channels, sizes, strides, groups and dilations, on narrow and wide vectors, as users get them:
small networks from torch through import, layout pass, fusion and default schedules, held to torch; and
sampled schedules of single kernels, which replay from the database.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import kernel_samples as samples
import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm.relax import VirtualMachine

from hapi_tvm import targets
from hapi_tvm.backbone_build import tuned_network
from hapi_tvm.compiling import compile_design
from hapi_tvm.errors import TargetError
from hapi_tvm.exits import exit_graph
from hapi_tvm.importing import import_model
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import KernelDatabase, target_folder
from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.tuning import best_schedules, tune

CHANNELS, SIZES, STRIDES = (3, 10, 24, 100), (7, 15, 28), (1, 2)
# Of a network's logits, relative to the largest; Winograd's rounding is within it.
TOLERANCE = 1e-4

WIDTHS = {
    "AVX-512": {"mcpu": "x86-64-v4"},
    "AVX2": {"mcpu": "x86-64-v3"},
    "generic": {"mcpu": "generic"},
    "generic, 8 lanes": {"mcpu": "generic", "vector_width": 8},
}


@pytest.fixture(params=WIDTHS)
def target(request):
    try:
        return targets.llvm(**WIDTHS[request.param])
    except TargetError as error:
        pytest.skip(f"{request.param}: {error}")


class Mixture(nn.Module):
    """Every kind of convolution at one size, from ``channels`` to ``channels``, with residual, SE and pooling."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        groups = 2 if channels % 2 == 0 else channels
        self.stem = nn.Conv2d(3, channels, 3, stride, 1)
        self.same = nn.Conv2d(channels, channels, 3, 1, 1)
        self.grouped = nn.Conv2d(channels, channels, 3, 1, 1, groups=groups)
        self.dilated = nn.Conv2d(channels, channels, 3, 1, 2, dilation=2)
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels)
        self.point = nn.Conv2d(channels, channels + 2, 1)
        self.gate = nn.Conv2d(channels + 2, channels + 2, 1)
        self.head = nn.Linear(2 * (channels + 2), 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.same(x) + x)
        x = nn.functional.silu(self.grouped(x))
        x = torch.relu(self.dilated(x))
        x = nn.functional.relu6(self.depthwise(x))
        x = self.point(x)
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        pooled = nn.functional.max_pool2d(x, 2)
        return self.head(torch.cat([x.mean((2, 3)), pooled.mean((2, 3))], dim=1))


def answers(model: nn.Module, size: int, target, folder) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the compiled model and of torch, on one image."""
    image = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 3, size, size), dtype=np.float32))
    backbone = import_model(model, image)
    graph = replace(exit_graph(backbone, may_be_empty=True), candidates=())
    tuned = tuned_network(backbone, graph, {}, target, folder, 0, 0, {})
    machine = VirtualMachine(compile_design(tuned.network.module, (), {}, tuned.schedules, target), tvm.cpu())
    with torch.no_grad():
        expected = torch.softmax(model(image), dim=1).numpy()
    return machine["main"](tvm.runtime.tensor(image.numpy()))[0].numpy(), expected


# Each channel count meets each size and each stride; the full product would take minutes.
CASES = [
    (channels, SIZES[(index + shift) % len(SIZES)], stride)
    for (index, channels), (shift, stride) in itertools.product(enumerate(CHANNELS), enumerate(STRIDES))
]


@pytest.mark.parametrize(("channels", "size", "stride"), CASES)
def test_a_network_of_every_kind_of_convolution_equals_torch(channels, size, stride, target, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(channels)
        model = Mixture(channels, stride).eval()
    found, expected = answers(model, size, target, tmp_path)
    np.testing.assert_allclose(np.log(found), np.log(expected), rtol=0, atol=TOLERANCE)
    assert expected.max() - expected.min() > 10 * TOLERANCE


def _kernels(lanes: int) -> list[Kernel]:
    """A convolution, one with Winograd's product, a depthwise and a dense one, of odd shapes."""
    funcs = {
        "dilated": samples.blocked(10, 3 * lanes, 15, stride=1, lanes=lanes, dilation=2),
        "winograd": samples.winograd_blocked(24, 2 * lanes, 7, 2, lanes),
        "depthwise": samples.depthwise(3 * lanes, 15, 2, lanes),
        "dense": samples.matmul(100, 37),
    }
    return [Kernel(kernel_key(func), name, func) for name, func in funcs.items()]


@pytest.mark.parametrize("width", ["AVX-512", "generic"])
def test_sampled_schedules_compute_the_same_and_replay_from_the_database(width, tmp_path):
    try:
        target = targets.llvm(**WIDTHS[width])
    except TargetError as error:
        pytest.skip(f"{width}: {error}")
    kernels = _kernels(target.vector_width)
    tune(kernels, target, tmp_path, 12, seed=3)
    folder = target_folder(tmp_path, target)
    first, again = KernelDatabase(folder), KernelDatabase(folder)
    pairs = []
    for kernel in kernels:
        one, other = first.measured(kernel), again.measured(kernel)
        assert len(one) >= 2
        for left, right in zip(one, other, strict=True):
            tvm.ir.assert_structural_equal(left.scheduled.func, right.scheduled.func)
            assert left.scheduled.key == right.scheduled.key
        pairs += [(kernel.func, item.scheduled.func) for item in other]
    assert differences(pairs, target) == [None] * len(pairs)
    used = best_schedules(kernels, target, tmp_path)
    assert {scheduled.origin for scheduled in used.values()} <= {"tuned", "default"}
