"""The lists of passes: from an imported network of each family to a module that answers as torch does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm

from hapi_tvm.importing import import_model
from hapi_tvm.passes.attach_exits import AttachExits
from hapi_tvm.passes.find_cuts import find_cuts
from hapi_tvm.passes.pipeline import assemble, lower_everything
from hapi_tvm.records import Option
from hapi_tvm.reference import RESULT, TorchReference
from tests.families import CLASSES, FAMILIES, IMAGE_SHAPE
from tests.passes import networks


@pytest.fixture(scope="module")
def lowered() -> tvm.IRModule:
    return lower_everything(
        networks.backbone(),
        networks.TENSORS,
        networks.branch_weights(),
        networks.HOST,
        networks.LANES,
    )


def test_segments_and_branches_are_those_of_the_passes_one_by_one(lowered):
    """All but the conversions of one tensor made twice, which the pipeline merges."""

    def without_conversions(mod: tvm.IRModule) -> dict[str, list[str]]:
        return {
            name: [kernel for kernel in networks.kernels(function) if "transform" not in kernel]
            for name, function in networks.functions(mod).items()
        }

    assert without_conversions(lowered) == without_conversions(networks.lowered())
    converting = [name for name in networks.kernels(lowered["segment_01"]) if "transform" in name]
    assert len(converting) == 1


def test_a_design_holds_router_parts_and_manifest(lowered):
    names = set(networks.functions(assemble(lowered, networks.KEPT, "{}", networks.HOST)))
    segments, exits = {"segment_00", "segment_01", "segment_02"}, {"exit_00", "exit_01"}
    assert names == {"main", "hapi_manifest"} | segments | exits


def test_inputs_are_unchanged(lowered):
    backbone, before = networks.backbone(), networks.copy_of(lowered)
    weights = networks.branch_weights()
    lower_everything(backbone, networks.TENSORS, weights, networks.HOST, networks.LANES)
    tvm.ir.assert_structural_equal(backbone, networks.backbone())
    assemble(lowered, networks.KEPT, "{}", networks.HOST)
    tvm.ir.assert_structural_equal(lowered, before)


def test_dump_holds_the_module_after_each_pass(lowered, tmp_path):
    assemble(lowered, networks.KEPT, "{}", networks.HOST, dump_dir=tmp_path)
    names = " ".join(sorted(path.name for path in tmp_path.iterdir()))
    found = [names.find(a_pass) for a_pass in ("DropExits", "Route", "AttachManifest")]
    assert -1 not in found and found == sorted(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_answer_as_torch_does(family):
    """Both kinds of branches; every exit is taken, and the backbone's end."""
    example = torch.randn(IMAGE_SHAPE, generator=torch.Generator().manual_seed(0))
    backbone = import_model(FAMILIES[family](), example)
    cuts = find_cuts(backbone.module, spacing=0.2)
    options = [Option(index, ("linear", "conv")[index % 2]) for index in range(len(cuts))]
    weights = {
        option: networks.random_branch(option.kind, cut.shape[1], CLASSES, seed=option.candidate)
        for option, cut in zip(options, cuts, strict=True)
    }
    tensors = [cut.tensor for cut in cuts]
    outputs = TorchReference(AttachExits(tensors, weights)(backbone.module)).run(example)[RESULT]

    lowered = lower_everything(backbone.module, tensors, weights, networks.HOST, networks.LANES)
    machine = networks.machine(assemble(lowered, options, "{}", networks.HOST))
    for fires in range(len(options) + 1):
        thresholds = np.full(len(options), np.inf, np.float32)
        thresholds[fires:] = 0.0
        probabilities, exit_taken, confidence = networks.call(machine["main"], example.numpy(), thresholds)
        assert int(exit_taken) == fires
        np.testing.assert_allclose(probabilities, outputs[2 * fires], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(confidence, outputs[2 * fires + 1], rtol=1e-3)
