"""AttachManifest: the text comes back from the library, to the letter."""

from __future__ import annotations

import json

import numpy as np
import tvm
from tvm import relax

from hapi_tvm.passes.attach_manifest import AttachManifest
from hapi_tvm.passes.pipeline import to_virtual_machine
from tests.passes import networks

TEXT = json.dumps({"format": 1, "exits": [{"name": 'exit "00"\n', "threshold": 0.1}], "model": "Größe"})


def expected() -> tvm.IRModule:
    builder = relax.BlockBuilder(tvm.IRModule(dict(networks.routed().functions_items())))
    with builder.function("hapi_manifest", []):
        builder.emit_func_output(builder.emit(tvm.ir.StringImm(TEXT)))
    return builder.finalize()


def test_one_function_is_added():
    attached = AttachManifest(TEXT)(networks.routed())
    tvm.ir.assert_structural_equal(attached, expected())
    relax.analysis.well_formed(attached)


def test_an_earlier_manifest_is_replaced():
    earlier = AttachManifest("{}")(networks.routed())
    tvm.ir.assert_structural_equal(AttachManifest(TEXT)(earlier), AttachManifest(TEXT)(networks.routed()))


def test_input_is_unchanged():
    networks.assert_leaves_its_input_alone(AttachManifest(TEXT), networks.routed())


def test_twice_equals_once():
    networks.assert_twice_equals_once(AttachManifest(TEXT), networks.routed())


def test_a_loaded_library_tells_its_manifest_and_still_answers(tmp_path):
    mod = AttachManifest(TEXT)(networks.routed())
    path = tmp_path / "model.so"
    tvm.compile(mod, networks.HOST, relax_pipeline=to_virtual_machine()).export_library(str(path))
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    assert machine["hapi_manifest"]() == TEXT
    x, never = networks.images(1)[0], np.full(2, np.inf, np.float32)
    probabilities, _, _ = networks.call(machine["main"], x, never)
    np.testing.assert_allclose(probabilities, networks.oracle_answers(x)[-1][0], rtol=1e-4, atol=1e-6)
