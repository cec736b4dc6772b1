"""A finished run compiled for another target: the same exits, the same answers."""

from __future__ import annotations

import json

import numpy as np
import pytest

import hapi_tvm as hapi
from hapi_tvm import targets
from hapi_tvm.datasets import load_dataset
from hapi_tvm.errors import RecordError, RunMismatch
from hapi_tvm.importing import import_model
from hapi_tvm.runtime import load
from hapi_tvm.targets.cuda_kernels import device_code
from tests.small_job import SmallJob, trained_network, write_onnx

OTHER = targets.llvm(mcpu="generic", vector_width=8)


@pytest.fixture(scope="module")
def ported(built: SmallJob, tmp_path_factory):
    """The small job for a processor without its machine's vectors."""
    library = tmp_path_factory.mktemp("ported") / "model.so"
    hapi.port(built.run_dir, import_model(built.model), OTHER, library)
    return load(library)


def test_it_answers_as_the_runs_own_library_does(built, ported):
    own = load(built.run_dir / "model.so")
    for image in load_dataset(built.data).test.images[:64]:
        here, there = own.predict(image), ported.predict(image)
        assert (here.exit_name, here.label) == (there.exit_name, there.label)
        np.testing.assert_allclose(there.probabilities, here.probabilities, atol=1e-5)


def test_the_manifest_is_the_runs_but_for_the_target(built, ported):
    own = dict(load(built.run_dir / "model.so").manifest)
    found = dict(ported.manifest)
    assert found["target"] == OTHER.name and own["target"] != OTHER.name
    for name in ("target", "needed_flags", "design_key"):
        own.pop(name), found.pop(name)
    assert found == own


def test_for_a_gpu_it_is_compiled_without_one(built, tmp_path):
    backbone = import_model(built.model)
    library = tmp_path / "model.so"
    target = targets.cuda("sm_90", compiler="source")
    compiled = hapi.port(built.run_dir, backbone, target, library, dump_ir=tmp_path / "ir")
    assert library.read_bytes().startswith(b"\x7fELF")
    assert len(device_code(compiled).kernels) > 5
    assert any("Route" in path.name for path in (tmp_path / "ir").iterdir())


def test_another_model_is_refused(built, tmp_path):
    other = import_model(write_onnx(trained_network(seed=1, epochs=1), tmp_path / "other.onnx"))
    with pytest.raises(RunMismatch, match="give the model that the run was built from"):
        hapi.port(built.run_dir, other, OTHER, tmp_path / "model.so")
    assert not (tmp_path / "model.so").exists()


def test_a_run_without_a_design_says_what_writes_one(copied, tmp_path):
    (copied.run_dir / "design.json").unlink()
    with pytest.raises(RecordError, match="design.json does not exist; `hapi-tvm build .*` writes it"):
        hapi.port(copied.run_dir, import_model(copied.model), OTHER, tmp_path / "model.so")


def test_a_design_of_other_exits_is_refused(copied, tmp_path):
    path = copied.run_dir / "design.json"
    envelope = json.loads(path.read_text())
    envelope["record"]["provenance"]["exits"] = "0" * 16
    path.write_text(json.dumps(envelope))
    with pytest.raises(RecordError, match="searched among other exits"):
        hapi.port(copied.run_dir, import_model(copied.model), OTHER, tmp_path / "model.so")
