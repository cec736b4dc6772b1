"""The lists of passes: from a backbone to a design that answers as torch does."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from hapi_tvm.passes.pipeline import assemble, lower_everything
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
    def called(mod: tvm.IRModule) -> dict[str, list[str]]:
        return {name: networks.kernels(function) for name, function in networks.functions(mod).items()}

    assert called(lowered) == called(networks.lowered())


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


@pytest.mark.parametrize("kept", [(), networks.KEPT, networks.OPTIONS[::2]], ids=["none", "two", "three"])
def test_a_design_answers_as_torch_does(lowered, kept):
    machine = networks.machine(assemble(lowered, kept, "{}", networks.HOST))
    for x in networks.images(3):
        expected = networks.oracle_answers(x, kept)
        for fires in range(len(kept) + 1):
            thresholds = np.full(len(kept), np.inf, np.float32)
            thresholds[fires:] = 0.0
            inputs = (x, thresholds) if kept else (x,)
            probabilities, exit_taken, confidence = networks.call(machine["main"], *inputs)
            assert int(exit_taken) == fires
            np.testing.assert_allclose(probabilities, expected[fires][0], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(confidence, [expected[fires][1]], rtol=1e-4)
