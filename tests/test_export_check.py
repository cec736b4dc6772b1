"""A backbone is exported only when it computes what the reference does; else the kernel is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tvm import te, topi

from hapi_tvm import backbone_build, targets
from hapi_tvm.backbone_build import compile_backbone, export_checked, manifest, tuned_network
from hapi_tvm.compiling import compile_design
from hapi_tvm.errors import BuildError
from hapi_tvm.exits import exit_graph
from hapi_tvm.export_check import relative_error
from hapi_tvm.importing import import_model
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.kernels import buffer_shapes, kernel_key
from hapi_tvm.runtime import load
from tests import families

TARGET = targets.llvm()


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A model, its backbone, and the backbone's kernels with their default schedules."""
    model = families.resnet(blocks=1, width=16)
    backbone = import_model(model, torch.zeros(1, 3, 16, 16))
    graph = replace(exit_graph(backbone, may_be_empty=True), candidates=())
    return model, backbone, tuned_network(backbone, graph, {}, TARGET, tmp_path_factory.mktemp("database"), 0, 0, {})


def export(network, tuned, path):
    _, backbone, _ = network
    compiled = compile_design(tuned.network.module, (), manifest(backbone, TARGET), tuned.schedules, TARGET)
    export_checked(compiled, path, backbone, tuned, TARGET)


def zeros_like(func):
    """A kernel of the same arguments that writes zeros."""
    *inputs, output = buffer_shapes(func)
    arguments = [te.placeholder(shape, name=f"argument_{index}") for index, shape in enumerate(inputs)]
    return te.create_prim_func([*arguments, topi.full(output, "float32", 0.0)])


def test_right_schedules_are_exported_and_answer_as_torch_does(network, tmp_path):
    export(network, network[2], tmp_path / "backbone.so")
    image = np.random.default_rng(3).standard_normal((1, 3, 16, 16), dtype=np.float32)
    with torch.no_grad():
        expected = torch.softmax(network[0](torch.from_numpy(image)), dim=1)[0]
    found = load(tmp_path / "backbone.so").predict(image).probabilities
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"backbone.so"}


@pytest.mark.parametrize("place", [1, 3])
def test_a_wrong_schedule_is_named_and_nothing_is_written(network, tmp_path, place):
    tuned = network[2]
    kernel = list(tuned.network.kernels.values())[place]
    func = zeros_like(kernel.func)
    wrong = replace(tuned, schedules=tuned.schedules | {kernel.key: Scheduled(func, kernel_key(func), "tuned")})
    with pytest.raises(BuildError) as caught:
        export(network, wrong, tmp_path / "backbone.so")
    message = str(caught.value)
    assert f"kernel {kernel.name} ({kernel.key}, schedule {kernel_key(func)})" in message
    assert message.count("schedule ") == 1 and "of the largest logit" in message
    assert not (tmp_path / "backbone.so").exists()


def test_a_pass_that_is_wrong_is_told_from_a_kernel(network, tmp_path):
    """The library of another network with the same shapes: every kernel is right, the answer is not."""
    _, backbone, tuned = network
    other = import_model(families.resnet(blocks=1, width=16, seed=1), torch.zeros(1, 3, 16, 16))
    compiled = compile_design(tuned.network.module, (), manifest(backbone, TARGET), tuned.schedules, TARGET)
    with pytest.raises(BuildError, match="a pass or the memory plan is wrong"):
        export_checked(compiled, tmp_path / "backbone.so", other, tuned, TARGET)


def test_compile_backbone_checks(network, tmp_path, monkeypatch):
    monkeypatch.setattr(backbone_build, "logits_of", lambda module, image: np.eye(1, families.CLASSES))
    with pytest.raises(BuildError, match="of the largest logit"):
        compile_backbone(network[1], TARGET, tmp_path / "backbone.so", tmp_path / "database", trials=0)
    assert not (tmp_path / "backbone.so").exists()


def test_the_error_is_that_of_the_logits():
    logits = np.array([[2.0, -1.0, 0.5]], np.float32)
    powers = np.exp(logits.astype(np.float64))
    assert relative_error(powers / powers.sum(), logits) < 1e-6
    powers[0, 1] *= np.exp(0.3)
    # Centred: one logit is 0.3 larger, less the mean's 0.1; the largest centred logit is 1.5.
    assert relative_error(powers / powers.sum(), logits) == pytest.approx(0.2 / 1.5, rel=1e-5)
    assert np.isnan(relative_error(np.full((1, 3), np.nan), logits))
