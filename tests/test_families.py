"""Six families through the whole compiler: cut, attach, lower, schedule and route, held against torch."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tvm
from tvm import relax

from hapi_tvm import targets
from hapi_tvm.compiling import compile_design
from hapi_tvm.exits import exit_graph
from hapi_tvm.heads import HEADS
from hapi_tvm.importing import import_model
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.network import LoweredNetwork, read_network
from hapi_tvm.passes.attach_exits import AttachExits, BranchWeights
from hapi_tvm.passes.pipeline import lower_everything
from hapi_tvm.records import ExitGraph, Option
from hapi_tvm.reference import RESULT, TorchReference
from hapi_tvm.targets import Target
from hapi_tvm.tuning import best_schedules
from tests.families import FAMILIES, IMAGE_SHAPE, classifier, conv_norm, conv_norm_relu, seeded

HOST = targets.llvm()
# Blocks of 4 fit these narrow networks everywhere, those of a wider host in part: each takes other paths.
NARROW = replace(HOST, vector_width=4)
TOLERANCE = 1e-4  # of the largest output
NEVER = np.inf


def images(count: int) -> np.ndarray:
    """float32 [count, 1, 3, 32, 32]."""
    return np.random.default_rng(0).standard_normal((count, *IMAGE_SHAPE), dtype=np.float32)


def grouped() -> torch.nn.Module:
    """A convolution in two groups, each a whole number of blocks: one that stays blocked."""

    def build() -> torch.nn.Module:
        in_groups = (*conv_norm(32, 32, 3, groups=2), torch.nn.ReLU())
        return torch.nn.Sequential(conv_norm_relu(3, 32, 3), *in_groups, conv_norm_relu(32, 32, 3), *classifier(32))

    return seeded(build, seed=0)


NETWORKS = {**FAMILIES, "grouped": grouped}
CASES = [(name, HOST) for name in NETWORKS] + [
    (name, NARROW) for name in ("mobilenet_v2", "densenet", "squeeze_excite")
]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A family as ONNX, and its design of two exits, a linear one and a convolutional one behind it."""

    target: Target
    model: torch.nn.Module
    proto: onnx.ModelProto
    graph: ExitGraph
    network: LoweredNetwork
    schedules: dict[str, Scheduled]
    kept: tuple[Option, Option]
    reference: TorchReference
    machine: relax.VirtualMachine

    def answer(self, image: np.ndarray, thresholds: list[float]) -> tuple[np.ndarray, int, float]:
        """Probabilities [1, K], the exit taken, the confidence."""
        inputs = [tvm.runtime.tensor(np.asarray(array, np.float32)) for array in (image, thresholds)]
        probabilities, taken, confidence = (value.numpy() for value in self.machine["main"](*inputs))
        return probabilities, int(taken), float(confidence[0])


def to_onnx(model: torch.nn.Module) -> onnx.ModelProto:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, (torch.zeros(IMAGE_SHAPE),), buffer, dynamo=False)
    return onnx.load_model_from_string(buffer.getvalue())


def branch_weights(graph: ExitGraph) -> dict[Option, BranchWeights]:
    """Untrained, and sharp enough that no two classes are near each other."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            option: HEADS[option.kind](graph.candidates[option.candidate].shape[1], graph.classes)
            .eval()
            .export(temperature=0.25)
            for option in graph.options
        }


def two_exits(graph: ExitGraph) -> tuple[Option, Option]:
    """About a third and two thirds along the candidates."""
    last = len(graph.candidates) - 1
    assert last >= 1
    return Option(last // 3, "linear"), Option(max(last // 3 + 1, 2 * last // 3), "conv")


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1].vector_width}")
def family(request, tmp_path_factory) -> Compiled:
    name, target = request.param
    model = NETWORKS[name]()
    proto = to_onnx(model)
    backbone = import_model(proto)
    graph = exit_graph(backbone)
    tensors = [candidate.tensor for candidate in graph.candidates]
    weights, kept = branch_weights(graph), two_exits(graph)
    lowered = lower_everything(backbone.module, tensors, weights, target.tvm_target, target.vector_width)
    network = read_network(lowered, graph)
    schedules = best_schedules(network.kernels.values(), target, tmp_path_factory.mktemp("database"))
    machine = relax.VirtualMachine(compile_design(network.module, kept, {}, schedules, target), tvm.cpu())
    reference = TorchReference(AttachExits(tensors, weights)(backbone.module))
    return Compiled(target, model, proto, graph, network, schedules, kept, reference, machine)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_without_exits_it_answers_as_torch_and_onnx_runtime_do(family):
    session = onnxruntime.InferenceSession(family.proto.SerializeToString(), providers=["CPUExecutionProvider"])
    for image in images(3):
        probabilities, taken, confidence = family.answer(image, [NEVER, NEVER])
        with torch.no_grad():
            by_torch = family.model(torch.from_numpy(image)).numpy()
        (by_onnx_runtime,) = session.run(None, {session.get_inputs()[0].name: image})
        for logits in (by_torch, by_onnx_runtime):
            expected = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
            assert_close(probabilities, expected)
            assert probabilities.argmax() == expected.argmax()
        assert taken == 2 and confidence == probabilities.max()


@pytest.mark.parametrize("index", [0, 1])
def test_an_exit_that_fires_answers_as_its_branch_does_in_torch(family, index):
    column = family.graph.options.index(family.kept[index])
    for image in images(3):
        outputs = family.reference.run(torch.from_numpy(image))[RESULT]
        probabilities, taken, confidence = family.answer(image, [0.0 if i == index else NEVER for i in (0, 1)])
        assert taken == index
        assert_close(probabilities, outputs[2 * column].numpy())
        assert confidence == pytest.approx(float(outputs[2 * column + 1]), rel=TOLERANCE)


def test_the_threshold_is_compared_with_the_confidence(family):
    """Exit 0 leaves at a threshold just below its confidence, and not just above."""
    (image,) = images(1)
    *_, confidence = family.answer(image, [0.0, NEVER])
    assert family.answer(image, [confidence, NEVER])[1] == 0
    assert family.answer(image, [float(np.nextafter(np.float32(confidence), np.float32(2))), NEVER])[1] == 2


def test_every_part_is_made_of_kernels_and_every_convolution_has_a_schedule(family):
    assert len(family.network.segments) == len(family.graph.candidates) + 1
    assert len(family.network.branches) == len(family.graph.options)
    assert all(family.network.segments) and all(family.network.branches)
    assert set(family.schedules) == set(family.network.kernels)
    # Left unscheduled, a convolution is some ten times slower: the rules must fit all of them.
    for key, kernel in family.network.kernels.items():
        assert "conv2d" not in kernel.name or family.schedules[key].origin == "default", kernel.name
