"""The artifact as a user holds it: what loads, what predict takes and answers, and its parts one by one."""

from __future__ import annotations

import ctypes.util
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import tvm
from tvm import relax

from hapi_tvm.datasets import load_dataset
from hapi_tvm.errors import ArtifactError
from hapi_tvm.importing import import_model
from hapi_tvm.passes.attach_manifest import AttachManifest
from hapi_tvm.reference import RESULT, TorchReference
from hapi_tvm.runtime import FORMAT, Answer, Artifact, load, read_manifest, unloaded
from tests.small_job import CLASSES, IMAGE_SHAPE, SmallJob, gratings

# Where an ELF header names the machine, and an S/390 there (the System V ABI).
ELF_MACHINE = slice(18, 20)
EM_S390 = 22


@pytest.fixture(scope="module")
def artifact(built: SmallJob) -> Artifact:
    loaded = load(built.run_dir / "model.so")
    assert len(loaded.thresholds) >= 1
    return loaded


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return gratings(1, seed=7)[0][0]


def never(artifact: Artifact) -> list[float]:
    return [np.inf] * len(artifact.thresholds)


def refused(path: pathlib.Path, *said: str) -> None:
    with pytest.raises(ArtifactError) as error:
        load(path)
    for part in (str(path), *said):
        assert part in str(error.value)


def test_a_file_that_is_missing(tmp_path):
    refused(tmp_path / "model.so", "no such file", "hapi-tvm build")
    refused(tmp_path, "no such file")


@pytest.mark.parametrize("content", [b"", b"no library\n", b"\x7fELF" + bytes(100)])
def test_a_file_that_is_no_library(tmp_path, content):
    path = tmp_path / "model.so"
    path.write_bytes(content)
    refused(path, "not a library that can be loaded here")


def test_a_library_of_somebody_else(tmp_path):
    name = ctypes.util.find_library("m")
    assert name is not None
    maps = "import ctypes,sys; ctypes.CDLL(sys.argv[1]); print(open('/proc/self/maps').read())"
    found = subprocess.run([sys.executable, "-c", maps, name], capture_output=True, text=True, check=True)
    (libm,) = {line.split()[-1] for line in found.stdout.splitlines() if line.endswith(f"/{name}")}
    path = tmp_path / "libm.so"
    path.write_bytes(pathlib.Path(libm).read_bytes())
    refused(path)


def exported(module: tvm.IRModule, path: pathlib.Path) -> pathlib.Path:
    tvm.compile(module, tvm.target.Target("llvm")).export_library(str(path))
    return path


def doubling() -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(relax.op.add(x, x)))
        builder.emit_func_output(result)
    return builder.finalize()


def test_a_module_of_tvm_that_is_not_ours(tmp_path):
    refused(exported(doubling(), tmp_path / "model.so"), "carries no hapi_tvm manifest")


@pytest.mark.parametrize(
    "manifest, said",
    [
        (json.dumps({"format": FORMAT + 1}), (f"format {FORMAT + 1}", f"reads {FORMAT}", "build it again")),
        (json.dumps({}), ("format None", "build it again")),
        (json.dumps([FORMAT]), ("carries no hapi_tvm manifest",)),
        ("{", ("carries no hapi_tvm manifest",)),
    ],
)
def test_a_manifest_of_another_format(tmp_path, manifest, said):
    refused(exported(AttachManifest(manifest)(doubling()), tmp_path / "model.so"), *said)


def test_an_artifact_for_another_processor_is_refused_before_it_runs(tmp_path):
    manifest = {"format": FORMAT, "target": "llvm futurelake threads=1", "needed_flags": ["avx9000"]}
    path = exported(AttachManifest(json.dumps(manifest))(doubling()), tmp_path / "model.so")
    if not pathlib.Path("/proc/cpuinfo").exists():
        pytest.skip("needs /proc/cpuinfo")
    refused(path, "llvm futurelake threads=1", "avx9000", "mcpu='generic'")


def test_a_file_that_was_replaced_is_read_anew(built, tmp_path):
    """A second build in one process must not answer with the first one's library."""
    path = tmp_path / "model.so"
    shutil.copy(built.run_dir / "model.so", path)
    first = load(path)
    shutil.copy(built.run_dir / "backbone.so", tmp_path / "next.so")
    (tmp_path / "next.so").replace(path)
    assert load(path).manifest["exits"] == []
    assert first.manifest["exits"] and first.function("exit_00")


def test_without_exits_it_answers_as_the_model_does(artifact, image, built):
    answer = artifact.predict(image, thresholds=never(artifact))
    logits = TorchReference(import_model(built.model).module).run(torch.from_numpy(image[None]))[RESULT]
    expected = torch.softmax(logits, dim=1)[0].numpy()
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
    assert answer.label == expected.argmax() and answer.exit_name == "backbone"
    assert answer.exit == len(artifact.thresholds)
    assert answer.confidence == answer.probabilities.max()
    assert answer.probabilities.shape == (CLASSES,) and answer.probabilities.dtype == np.float32


def test_a_threshold_of_zero_takes_the_first_exit(artifact, image):
    answer = artifact.predict(image, thresholds=[0.0] * len(artifact.thresholds))
    assert (answer.exit, answer.exit_name) == (0, artifact.manifest["exits"][0]["name"])


def test_its_own_thresholds_are_those_of_the_manifest(artifact, built):
    designed = [placed["threshold"] for placed in artifact.manifest["exits"]]
    for image in load_dataset(built.data).test.images[:16]:
        assert_same(artifact.predict(image), artifact.predict(image, thresholds=designed))


def assert_same(one: Answer, other: Answer) -> None:
    np.testing.assert_array_equal(one.probabilities, other.probabilities)
    for name in ("label", "confidence", "exit", "exit_name"):
        assert getattr(one, name) == getattr(other, name)


def test_a_leading_one_changes_nothing(artifact, image):
    assert_same(artifact.predict(image[None]), artifact.predict(image))


def test_uint8_is_divided_by_255(artifact):
    pixels = np.random.default_rng(0).integers(256, size=IMAGE_SHAPE, dtype=np.uint8)
    scaled = pixels.astype(np.float32) / np.float32(255)
    assert_same(artifact.predict(pixels), artifact.predict(scaled))


def test_an_image_that_is_not_contiguous(artifact, image):
    assert_same(artifact.predict(image[:, :, ::-1]), artifact.predict(image[:, :, ::-1].copy()))


@pytest.mark.parametrize(
    "wrong, said",
    [
        (np.zeros((1, 12, 11), np.float32), "[1, 12, 11]"),
        (np.zeros((2, 1, 12, 12), np.float32), "[2, 1, 12, 12]"),
        (np.zeros((12, 12), np.float32), "[12, 12]"),
        (np.zeros(IMAGE_SHAPE), "float64"),
        (np.zeros(IMAGE_SHAPE, np.int32), "int32"),
    ],
)
def test_another_shape_or_dtype_is_refused_by_name(artifact, wrong, said):
    with pytest.raises(ArtifactError) as error:
        artifact.predict(wrong)
    assert said in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_value_that_is_not_finite_is_named(artifact, image, value):
    image = image.copy()
    image[0, 3, 5] = image[0, 7, 1] = value
    with pytest.raises(ArtifactError) as error:
        artifact.predict(image)
    assert f"image[0, 3, 5] is {value}" in str(error.value)


def test_thresholds_of_another_length_or_nan_are_refused(artifact, image):
    for wrong in ([*never(artifact), 0.5], never(artifact)[:-1], [np.nan] * len(artifact.thresholds)):
        with pytest.raises(ArtifactError) as error:
            artifact.predict(image, thresholds=wrong)
        assert f"has {len(artifact.thresholds)} exits" in str(error.value)


def test_the_parts_one_by_one_make_the_whole(artifact, image):
    """A caller who routes by itself gets what the router gets."""
    exits = len(artifact.thresholds)
    tensor = artifact.prepare(image)[0]
    for index in range(exits):
        tensor = artifact.function(f"segment_{index:02d}")(tensor)
        probabilities, confidence = artifact.function(f"exit_{index:02d}")(tensor)
        only = [0.0 if i == index else np.inf for i in range(exits)]
        answer = artifact.predict(image, thresholds=only)
        np.testing.assert_array_equal(probabilities.numpy()[0], answer.probabilities)
        assert (answer.exit, answer.confidence) == (index, float(confidence.numpy()[0]))
    probabilities, _ = artifact.function(f"segment_{exits:02d}")(tensor)
    whole = artifact.predict(image, thresholds=never(artifact))
    np.testing.assert_array_equal(probabilities.numpy()[0], whole.probabilities)


def test_a_part_that_it_lacks_is_named_with_those_it_has(artifact, built):
    exits = len(artifact.thresholds)
    with pytest.raises(ArtifactError) as error:
        artifact.function("segment_77")
    for part in ("segment_77", f"segment_{exits:02d}", f"exit_{exits - 1:02d}"):
        assert part in str(error.value)
    plain = load(built.run_dir / "backbone.so")
    with pytest.raises(ArtifactError) as error:
        plain.function("exit_00")
    assert "segment_00 to segment_00" in str(error.value) and "and exit" not in str(error.value)


def test_the_plain_backbone_takes_no_thresholds(built, image):
    plain = load(built.run_dir / "backbone.so")
    assert plain.predict(image).exit_name == "backbone"
    with pytest.raises(ArtifactError, match="has 0 exits"):
        plain.predict(image, thresholds=[0.5])


def test_an_artifact_needs_neither_torch_nor_the_compiler(built, image, tmp_path):
    np.save(tmp_path / "image.npy", image)
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy, hapi_tvm\n"
        "answer = hapi_tvm.load(sys.argv[1]).predict(numpy.load(sys.argv[2]))\n"
        "heavy = [n for n in sys.modules if n.startswith(('hapi_tvm.passes', 'hapi_tvm.search', 'onnx', 'xgboost'))]\n"
        "print(answer.label, heavy)"
    )
    arguments = [sys.executable, "-c", script, built.run_dir / "model.so", tmp_path / "image.npy"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.split(maxsplit=1) == [str(load(built.run_dir / "model.so").predict(image).label), "[]\n"]


def test_a_manifest_is_read_without_loading(artifact, built):
    path = built.run_dir / "model.so"
    assert read_manifest(path) == artifact.manifest
    assert unloaded(path).manifest == artifact.manifest


def test_an_artifact_of_another_machine_tells_its_exits_and_runs_there(artifact, image, built, tmp_path):
    """The same bytes, but the ELF header says that they are for an S/390."""
    data = bytearray((built.run_dir / "model.so").read_bytes())
    data[ELF_MACHINE] = EM_S390.to_bytes(2, "little")
    path = tmp_path / "model.so"
    path.write_bytes(data)
    refused(path, "not a library that can be loaded here", artifact.manifest["target"])
    elsewhere = unloaded(path)
    np.testing.assert_array_equal(elsewhere.thresholds, artifact.thresholds)
    for use in (lambda: elsewhere.predict(image), lambda: elsewhere.function("segment_00")):
        with pytest.raises(ArtifactError, match="which is another machine"):
            use()


@pytest.mark.parametrize("content", [b"", b'{"format": 1, "torn', b"\x7fELF" + bytes(100)])
def test_a_file_without_a_manifest(tmp_path, content):
    path = tmp_path / "model.so"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="carries no hapi_tvm manifest"):
        read_manifest(path)
