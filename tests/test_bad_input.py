"""Every row of the bad-input table, as a user meets it: exit code 2, a message that names it, no traceback."""

from __future__ import annotations

import json
import pathlib
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from onnx import TensorProto, helper
from torch import nn

from hapi_tvm.kernel_database import target_folder
from hapi_tvm.report import read_report
from hapi_tvm.runtime import load
from tests.families import conv_norm_relu
from tests.small_job import CLASSES, IMAGE_SHAPE, SIZES, TARGET, SmallJob, command, write_onnx


def refused(done: Result, *said: str) -> str:
    """The message; each of ``said`` is a part of it."""
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output and "internal error" not in done.output
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    for part in said:
        assert part in message
    return message


def build(job: SmallJob, *more: object) -> Result:
    return command(*job.build_options(), *more)


# A model that is none.


def test_text_is_no_model(tmp_path):
    path = tmp_path / "notes.onnx"
    path.write_text("weights of the week\n")
    refused(command("inspect", path), str(path), "no ONNX model")


def test_a_truncated_model(tmp_path, unbuilt):
    path = tmp_path / "half.onnx"
    whole = unbuilt.model.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(command("inspect", path), str(path), "cut short")


def test_a_model_that_is_not_there(tmp_path, unbuilt):
    path = tmp_path / "absent.onnx"
    refused(build(replace(unbuilt, model=path, run_dir=tmp_path / "run")), str(path), "does not exist")
    assert not (tmp_path / "run").exists()


# A model that cannot be imported.


def edited(source: pathlib.Path, path: pathlib.Path, edit) -> pathlib.Path:
    model = onnx.load(source)
    edit(model.graph)
    onnx.save(model, path)
    return path


def unknown_operator(graph):
    graph.node[1].op_type, graph.node[1].name = "Bernoulli", "coin"


def dynamic_height(graph):
    graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"


def second_input(graph):
    graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1, 3)))


def second_output(graph):
    graph.output.append(helper.make_tensor_value_info(graph.node[0].output[0], TensorProto.FLOAT, (1, 16, 12, 12)))


@pytest.mark.parametrize(
    "edit, said",
    [
        (unknown_operator, ("'coin'", "Bernoulli", "export the model again")),
        (dynamic_height, ("axis 2", "'height'", "dynamic shape")),
        (second_input, ("2 inputs", "mask", "export it with the one input")),
        (second_output, ("2 outputs", "export it with the one output")),
    ],
)
def test_a_model_that_cannot_be_imported(tmp_path, unbuilt, edit, said):
    refused(command("inspect", edited(unbuilt.model, tmp_path / "edited.onnx", edit)), *said)


# A network with no legal cut.


class TwoTowers(nn.Module):
    """Two networks that meet in the sum of their logits: no tensor separates input from result."""

    def __init__(self):
        super().__init__()
        self.towers = nn.ModuleList(
            nn.Sequential(
                conv_norm_relu(1, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)
            )
            for _ in range(2)
        )

    def forward(self, x):
        return self.towers[0](x) + self.towers[1](x)


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TwoTowers().eval()
    return write_onnx(model, tmp_path_factory.mktemp("towers") / "towers.onnx"), model


def test_no_legal_cut_says_why_and_what_to_do(fresh, towers):
    for done in (command("inspect", towers[0]), build(replace(fresh, model=towers[0]))):
        refused(done, "no tensor between input and result separates the network", "max_exits=0", "--max-exits 0")


def test_without_a_legal_cut_the_plain_backbone_compiles(fresh, towers):
    path, model = towers
    job = replace(fresh, model=path)
    done = build(job, "--max-exits", 0)
    assert done.exit_code == 0, done.output
    assert "end of the backbone" in done.stdout
    report = read_report(job.run_dir)
    assert (report["candidates"], report["design"]["exits"]) == (0, [])
    assert report["verification"]["same_label"] == SIZES["test"]
    image = np.random.default_rng(0).standard_normal(IMAGE_SHAPE, dtype=np.float32)
    with torch.no_grad():
        expected = torch.softmax(model(torch.from_numpy(image[None])), dim=1)[0]
    answer = load(job.run_dir / "model.so").predict(image)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
    assert answer.exit_name == "backbone"
    # And the empty exit graph serves no later build that wants exits.
    refused(build(job), "no tensor between input and result")


# Images that do not fit.


def changed_data(source: pathlib.Path, path: pathlib.Path, change) -> pathlib.Path:
    with np.load(source) as arrays:
        held = {name: arrays[name].copy() for name in arrays}
    change(held)
    np.savez(path, **held)
    return path


def another_size(held):
    held["test_images"] = held["test_images"][:, :, :11]


def complex_pixels(held):
    held["train_images"] = held["train_images"].astype(np.complex64)


def a_nan(held):
    held["calibrate_images"][17, 0, 3, 4] = np.nan


def an_infinity(held):
    held["train_images"][5, 0, 0, 1] = -np.inf


def a_label_out_of_range(held):
    held["test_labels"][9] = CLASSES + 3


def a_label_too_few(held):
    held["train_labels"] = held["train_labels"][:-1]


def an_empty_split(held):
    for name in ("calibrate_images", "calibrate_labels"):
        held[name] = held[name][:0]


def one_class(held):
    held["train_labels"][:] = 2


@pytest.mark.parametrize(
    "change, said",
    [
        (another_size, ("test", "11", "12")),
        (complex_pixels, ("train", "complex64")),
        (a_nan, ("calibrate", "17, 0, 3, 4", "nan")),
        (an_infinity, ("train", "5, 0, 0, 1", "-inf")),
        (a_label_out_of_range, ("test", "9", str(CLASSES + 3))),
        (a_label_too_few, ("train", str(SIZES["train"]), str(SIZES["train"] - 1))),
        (an_empty_split, ("calibrate", "empty")),
        (one_class, ("train", "2")),
    ],
)
def test_images_or_labels_that_do_not_fit(tmp_path, fresh, change, said):
    job = replace(fresh, data=changed_data(fresh.data, tmp_path / "changed.npz", change))
    refused(build(job), *said)
    assert not job.run_dir.exists()


# An SLA that cannot be met.


def test_an_sla_that_cannot_be_met_names_the_nearest_design(copied):
    before = {path.name: path.read_bytes() for path in copied.run_dir.iterdir()}
    message = refused(build(copied, "--mean-latency-ms", 0.00001), "no design meets mean_latency_ms=1e-05")
    assert "takes" in message and "raise the budget" in message
    assert {path.name: path.read_bytes() for path in copied.run_dir.iterdir() if path.name != ".lock"} == {
        name: content for name, content in before.items() if name != ".lock"
    }


# A run folder of something else.


def test_a_run_folder_of_another_model_or_data_set(copied, tmp_path, towers):
    before = {path.name: path.read_bytes() for path in copied.run_dir.iterdir() if path.name != ".lock"}
    refused(build(replace(copied, model=towers[0])), str(copied.run_dir), "model is", "give another run_dir")
    other = changed_data(copied.data, tmp_path / "other.npz", lambda held: held["train_images"].__imul__(0.5))
    refused(build(replace(copied, data=other)), "dataset is")
    refused(build(copied, "--mcpu", "x86-64"), "target is llvm", "x86-64 threads=1 here")
    assert {path.name: path.read_bytes() for path in copied.run_dir.iterdir() if path.name != ".lock"} == before


@pytest.mark.parametrize("name", ["tvm", "hapi_tvm"])
def test_a_run_folder_of_another_version(copied, name):
    path = copied.run_dir / "run.json"
    identity = json.loads(path.read_text())
    identity["identity"][name] = "0.0.9"
    path.write_text(json.dumps(identity))
    refused(build(copied), f"{name} is 0.0.9 there")


# Broken files in it.

@pytest.mark.parametrize("name", ["exits.json", "calibrate.npz", "latency.json", "design.json"])
def test_a_broken_record_is_set_aside_and_made_again(copied, name):
    path = copied.run_dir / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    kept = {
        other.name: other.stat().st_mtime_ns
        for other in copied.run_dir.iterdir()
        if other.suffix in (".json", ".npz") and other.name not in (name, "design.json", "report.json")
    }
    done = build(copied)
    assert done.exit_code == 0, done.output
    assert f"set aside as {name}.broken-1" in done.stderr and str(path) in done.stderr
    assert (copied.run_dir / f"{name}.broken-1").read_bytes() == whole[: len(whole) // 2]
    assert path.exists()
    assert kept == {other: (copied.run_dir / other).stat().st_mtime_ns for other in kept}
    assert read_report(copied.run_dir)["verification"]["samples"] == SIZES["test"]


def test_a_broken_line_of_the_database_is_set_aside_and_the_others_serve(copied):
    path = target_folder(copied.database_dir, TARGET) / "measurements.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0][: len(lines[0]) // 2] + "\n", *lines[1:]]))
    (copied.run_dir / "latency.json").unlink()
    done = build(copied)
    assert done.exit_code == 0, done.output
    assert "1 broken lines moved" in done.stderr
    found = path.read_text().splitlines(keepends=True)
    assert found[: len(lines) - 1] == lines[1:] and len(found) == len(lines)
    assert json.loads(found[-1])["kernel"] == json.loads(lines[0])["kernel"]


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_broken_artifact_is_compiled_again(copied, content):
    (copied.run_dir / "model.so").write_bytes(content)
    assert build(copied).exit_code == 0
    assert load(copied.run_dir / "model.so").manifest["exits"]
