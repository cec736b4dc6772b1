"""An early-exit network compiled whole for a GPU: its kernels, its copies, its machine code.

Without a GPU the same module runs on the CPU, threads one after the other, and must answer as torch does.
"""

from __future__ import annotations

import importlib.resources
import json
import pathlib
import re
import struct

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from hapi_tvm import targets
from hapi_tvm.backbone_build import manifest
from hapi_tvm.compiling import compile_design
from hapi_tvm.errors import ArtifactError
from hapi_tvm.exits import exit_graph
from hapi_tvm.importing import Backbone, import_model
from hapi_tvm.kernels import buffer_shapes
from hapi_tvm.network import LoweredNetwork, read_network
from hapi_tvm.passes.attach_exits import AttachExits
from hapi_tvm.passes.pipeline import assemble, cut, lower_everything
from hapi_tvm.passes.winograd import convolution_shapes
from hapi_tvm.records import ExitGraph, Option, PlacedExit
from hapi_tvm.reference import RESULT, TorchReference
from hapi_tvm.runtime import load
from hapi_tvm.targets.cuda_kernels import device_code
from hapi_tvm.targets.nvcc import find_nvcc
from hapi_tvm.tuning import best_schedules
from tests.families import FAMILIES
from tests.test_families import branch_weights, images, to_onnx, two_exits
from tests.without_gpu import compiled_here

SOURCE = targets.cuda("sm_90", compiler="source")
FATBIN = struct.pack("<I", 0xBA55ED50)
# Of an ELF header: 64 bits, and NVIDIA's number of its machine.
CUBIN = re.compile(rb"\x7fELF\x02.{11}.{2}\xbe\x00", re.DOTALL)


class Network:
    """A backbone with two exits, lowered for CUDA. spacing: of the candidates."""

    def __init__(self, backbone: Backbone, database: pathlib.Path, spacing: float = 0.0):
        self.backbone = backbone
        self.graph: ExitGraph = exit_graph(backbone, spacing)
        self.weights = branch_weights(self.graph)
        self.kept: tuple[Option, ...] = two_exits(self.graph)
        self.tensors = [candidate.tensor for candidate in self.graph.candidates]
        lowered = lower_everything(
            self.backbone.module, self.tensors, self.weights, SOURCE.tvm_target, SOURCE.vector_width
        )
        self.network: LoweredNetwork = read_network(lowered, self.graph)
        self.schedules = best_schedules(self.network.kernels.values(), SOURCE, database)

    def compiled(self, target: targets.Target) -> tvm.runtime.Executable:
        candidates = self.graph.candidates
        placed = [
            PlacedExit(candidates[option.candidate].name, option.candidate, option.kind, 0.5, 0.5)
            for option in self.kept
        ]
        told = manifest(self.backbone, target, placed)
        return compile_design(self.network.module, self.kept, told, self.schedules, target)

    def scheduled(self) -> tvm.IRModule:
        """What ``compile_design`` hands to TVM."""
        routed = assemble(self.network.module, self.kept, json.dumps({}), SOURCE.tvm_target)
        return SOURCE.finish(routed)


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Network:
    """A small ResNet."""
    return Network(import_model(to_onnx(FAMILIES["resnet"]())), tmp_path_factory.mktemp("database"))


@pytest.fixture(scope="module", params=["source", "nvcc"])
def target(request) -> targets.Target:
    if request.param == "source":
        return SOURCE
    if find_nvcc() is None:
        pytest.skip("needs nvcc")
    return targets.cuda("sm_90")


@pytest.fixture(scope="module")
def compiled(network, target) -> tvm.runtime.Executable:
    return network.compiled(target)


@pytest.fixture(scope="module")
def library(compiled, tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("library") / "model.so"
    compiled.export_library(str(path))
    return path


def called_kernels(mod: tvm.IRModule) -> set[str]:
    return {
        var.name_hint
        for var, function in mod.functions_items()
        if isinstance(function, tvm.tirx.PrimFunc) and not var.name_hint.startswith("gate_")
    }


def test_nothing_is_blocked(network):
    assert all(len(shape) <= 4 for kernel in network.network.kernels.values() for shape in buffer_shapes(kernel.func))


def test_there_is_one_way_to_compute_a_convolution(network):
    """So nothing has to be chosen in place, which a board's GPU could not time (``GpuBoardMachine.kernels_us``)."""
    pieces = cut(network.backbone.module, network.tensors, network.weights, SOURCE.tvm_target, SOURCE.vector_width)
    assert not convolution_shapes(pieces)
    blocked = cut(network.backbone.module, network.tensors, network.weights, SOURCE.tvm_target, vector_width=16)
    assert convolution_shapes(blocked)


def test_every_kernel_has_a_schedule_without_trials(network):
    assert {scheduled.origin for scheduled in network.schedules.values()} == {"default"}


def test_the_module_lists_the_kernels_and_no_gate(network, compiled):
    """A kernel of several steps is launched as several, numbered."""
    launched = device_code(compiled).kernels
    assert len(set(launched)) == len(launched)
    stems = {re.sub(r"_kernel(_\d+)?$", "", name) for name in launched}
    assert stems == called_kernels(network.scheduled())


def test_the_embedded_example_compiles_and_lists_its_kernels(target, tmp_path):
    model = importlib.resources.files("hapi_tvm") / "data" / "resnet56_fashion_mnist.onnx"
    example = Network(import_model(str(model)), tmp_path, spacing=0.05)
    launched = device_code(example.compiled(target)).kernels
    assert {re.sub(r"_kernel(_\d+)?$", "", name) for name in launched} == called_kernels(example.scheduled())


def test_a_module_for_the_cpu_lists_none(network):
    host = targets.llvm()
    lowered = lower_everything(
        network.backbone.module, network.tensors, network.weights, host.tvm_target, host.vector_width
    )
    assert device_code(compile_design(lowered, network.kept, {}, {}, host)).kernels == ()


def test_the_library_holds_machine_code_or_source(library, target):
    data = library.read_bytes()
    assert data.startswith(b"\x7fELF")
    machine_code = FATBIN in data or CUBIN.search(data) is not None
    assert machine_code == (target.nvcc is not None)
    assert (b"__global__ void" in data) == (target.nvcc is None)


def test_without_a_gpu_a_library_says_what_it_takes(library):
    if tvm.cuda(0).exist:
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(ArtifactError, match="nvidia-smi"):
        load(library)


@pytest.fixture(scope="module")
def on_cpu(network) -> relax.VirtualMachine:
    return relax.VirtualMachine(compiled_here(network.scheduled()), [tvm.cpu(), tvm.cpu()])


def expected_answers(network: Network, image: np.ndarray) -> list[np.ndarray]:
    """Probabilities [1, K] of the two exits and of the backbone, by torch."""
    reference = TorchReference(AttachExits(network.tensors, network.weights)(network.backbone.module))
    fields = reference.run(torch.from_numpy(image))[RESULT]
    options = list(network.weights)
    places = [options.index(option) for option in network.kept] + [len(options)]
    return [fields[2 * place].numpy() for place in places]


def test_the_kernels_answer_as_torch_does_at_every_exit(network, on_cpu):
    for image in images(3):
        expected = expected_answers(network, image)
        for fires in range(3):
            thresholds = np.array([0.0 if index >= fires else np.inf for index in range(2)], np.float32)
            inputs = [tvm.runtime.tensor(array) for array in (image, thresholds)]
            probabilities, taken, confidence = (value.numpy() for value in on_cpu["main"](*inputs))
            assert int(taken) == fires
            np.testing.assert_allclose(probabilities, expected[fires], rtol=1e-3, atol=1e-5)
            assert confidence[0] == probabilities.max()


def test_on_a_gpu_it_answers_as_torch_does(network, library):
    if not tvm.cuda(0).exist:
        pytest.skip("needs a GPU of NVIDIA's")
    artifact = load(library)
    for image in images(20):
        expected = expected_answers(network, image)
        for fires in range(3):
            answer = artifact.predict(image, [0.0 if index >= fires else np.inf for index in range(2)])
            assert answer.exit == fires
            np.testing.assert_allclose(answer.probabilities, expected[fires][0], atol=1e-3)
