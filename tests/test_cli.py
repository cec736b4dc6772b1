"""The command line: light to start, exact in what it hands on, and no traceback for a user's mistake."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
import tvm
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from test_report import sample_report
from tvm import relax

import hapi_tvm
from hapi_tvm.cli import main
from hapi_tvm.errors import InfeasibleSLA
from hapi_tvm.passes.attach_manifest import AttachManifest
from hapi_tvm.passes.route import Route
from hapi_tvm.report import read_report, write_report
from hapi_tvm.targets.rpc.tracker import Tracker

ROOT = Path(hapi_tvm.__file__).parent.parent
HEAVY = ("tvm", "torch", "numpy", "onnx", "xgboost", "rich", "jinja2")


@pytest.fixture(autouse=True)
def package_log():
    """The command sets up the package's log for its process; other tests must not meet that."""
    log = logging.getLogger("hapi_tvm")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield
    log.handlers[:], log.propagate = handlers, propagate
    log.setLevel(level)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="hapi-tvm")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["build", "--help"],
        ["inspect", "-h"],
        ["predict", "-h"],
        ["report", "-h"],
        ["search", "-h"],
        ["targets", "-h"],
        ["board", "-h"],
        ["board", "check", "-h"],
        ["board", "serve", "-h"],
    ],
)
def test_help_imports_nothing_heavy_and_takes_under_a_second(arguments):
    script = (
        "import sys\nfrom hapi_tvm.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit as done: assert not done.code\n"
        f"sys.stderr.write(' '.join(name for name in {HEAVY!r} if name in sys.modules))"
    )
    durations_s = []
    for _ in range(3):
        started_s = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        durations_s.append(time.perf_counter() - started_s)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage:")
    assert min(durations_s) < 1.0


def test_every_option_of_every_command_has_a_place_in_its_help():
    for name, command in main.commands.items():
        text = run(name, "--help").output
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in text


@pytest.mark.parametrize("command", ["build", "search"])
def test_every_line_of_an_sla_is_an_option_and_its_default_is_told(command):
    options = {parameter.name: parameter for parameter in main.commands[command].params}
    for line in dataclasses.fields(hapi_tvm.SLA):
        told = "" if line.default is None else f"[default: {line.default}]"
        assert told in options[line.name].help


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Two convolutions and a classifier on 3x8x8, as an ONNX file."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.2, name)

    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("GlobalAveragePool", ["r1"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [weight("w0", 8, 3, 3, 3), weight("w1", 8, 8, 3, 3), weight("w2", 5, 8), weight("b2", 5)],
    )
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "noise.npz"
    rng = np.random.default_rng(0)
    images = rng.random((60, 3, 8, 8), dtype=np.float32)
    np.savez(path, images=images, labels=np.arange(60) % 5)
    return path


class Builder:
    """Stands in for ``hapi_tvm.build``, which takes minutes: notes its arguments, leaves a report."""

    def __init__(self, failure=None):
        self.failure = failure

    def __call__(self, *positional, **named):
        self.positional, self.named = positional, named
        if self.failure is not None:
            raise self.failure
        Path(named["run_dir"]).mkdir(exist_ok=True)
        write_report(named["run_dir"], sample_report())


@pytest.fixture
def replace_build(monkeypatch):
    def replace(failure=None):
        builder = Builder(failure)
        monkeypatch.setitem(vars(hapi_tvm), "build", builder)
        return builder

    return replace


def test_build_hands_every_option_on_and_prints_the_summary(model, data, tmp_path, replace_build):
    builder = replace_build()
    options = {
        "--run": tmp_path / "run",
        "--threads": 1,
        "--max-accuracy-drop": 0.02,
        "--mean-latency-ms": 1.5,
        "--p95-latency-ms": 2.5,
        "--p99-latency-ms": 3.5,
        "--worst-latency-ms": 4.5,
        "--deadline-ms": 5.5,
        "--latency-quantile": 0.8,
        "--max-exits": 3,
        "--drop-confidence": 0.9,
        "--certify-delta": 0.15,
        "--trials": 7,
        "--measure-budget": 5,
        "--spacing": 0.1,
        "--epochs": 2,
        "--distillation": 0.25,
        "--seed": 11,
        "--database": tmp_path / "db",
        "--dump-ir": tmp_path / "ir",
    }
    done = run("build", model, "--data", data, *(part for pair in options.items() for part in pair))
    assert done.exit_code == 0, done.output
    backbone, dataset, target = builder.positional
    assert (backbone.name, backbone.classes, dataset.name, target.threads) == ("tiny", 5, "noise", 1)
    assert builder.named == {
        "sla": hapi_tvm.SLA(0.02, 1.5, 2.5, 3.5, 4.5, 5.5, 0.8, 0.9, 0.15, 3),
        "run_dir": tmp_path / "run",
        "trials": 7,
        "measure_budget": 5,
        "spacing": 0.1,
        "epochs": 2,
        "distillation": 0.25,
        "seed": 11,
        "database_dir": tmp_path / "db",
        "dump_ir": tmp_path / "ir",
    }
    for figure in ("93.64 %", "93.11 %", "-0.53 points", "2.08 ms", "1.13 ms", "0.54", "0.9713", "42.0 %"):
        assert figure in done.output
    assert done.output.rstrip().endswith(f"report: {tmp_path / 'run' / 'report.html'}")


def test_build_takes_boards_by_tracker_and_key(model, data, tmp_path, replace_build):
    builder = replace_build()
    boards = ("--tracker", "127.0.0.1:1", "--key", "rasp4b", "--mcpu", "generic")
    assert run("build", model, "--data", data, "--run", tmp_path / "run", *boards).exit_code == 0
    target = builder.positional[2]
    assert target.name == "llvm generic threads=1 key=rasp4b"
    assert target.tracker == Tracker("127.0.0.1", 1, "rasp4b")
    assert target == hapi_tvm.targets.llvm(mcpu="generic", tracker="127.0.0.1:1", key="rasp4b")
    refused = run("build", model, "--data", data, "--run", tmp_path / "run", *boards[:2])
    assert refused.exit_code == 2 and "belong together" in refused.output


def test_build_takes_a_gpu_by_its_architecture(model, data, tmp_path, replace_build):
    builder = replace_build()
    done = run("build", model, "--data", data, "--run", tmp_path / "run", "--target", "cuda", "--arch", "sm_90")
    assert done.exit_code == 0, done.output
    assert builder.positional[2] == hapi_tvm.targets.cuda("sm_90")


def test_build_takes_what_the_command_line_hands_on(model, data, tmp_path, replace_build):
    parameters = inspect.signature(importlib.import_module("hapi_tvm.building").build)
    builder = replace_build()
    assert run("build", model, "--data", data, "--run", tmp_path / "run").exit_code == 0
    parameters.bind(*builder.positional, **builder.named)
    for name, parameter in parameters.parameters.items():
        if parameter.default is not inspect.Parameter.empty:
            assert builder.named[name] == parameter.default, f"the defaults of {name} differ"


@pytest.mark.parametrize(
    "options, drop", [([], 0.01), (["--mean-latency-ms", "1"], None), (["--max-accuracy-drop", "0"], 0.0)]
)
def test_one_point_is_the_sla_of_those_who_name_none(model, data, tmp_path, replace_build, options, drop):
    builder = replace_build()
    assert run("build", model, "--data", data, "--run", tmp_path / "run", *options).exit_code == 0
    assert builder.named["sla"].max_accuracy_drop == drop


def test_an_sla_may_be_given_as_text(model, data, tmp_path, replace_build):
    builder = replace_build()
    sla = ("--sla", "mean_latency_ms=1.5,max_exits=2", "--sla", "drop_confidence=0.9")
    assert run("build", model, "--data", data, "--run", tmp_path / "run", *sla).exit_code == 0
    assert builder.named["sla"] == hapi_tvm.SLA(mean_latency_ms=1.5, max_exits=2, drop_confidence=0.9)


@pytest.mark.parametrize(
    "failure, code, message",
    [
        (
            InfeasibleSLA("no design meets mean_latency_ms=0.4"),
            2,
            "error: no design meets mean_latency_ms=0.4",
        ),
        (PermissionError(13, "Permission denied", "/x"), 2, "error: [Errno 13] Permission denied: '/x'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("by zero"), 1, "internal error: ZeroDivisionError: by zero"),
    ],
)
def test_failures_end_in_a_message_and_a_code(model, data, tmp_path, replace_build, failure, code, message):
    replace_build(failure)
    arguments = ["build", model, "--data", data, "--run", tmp_path / "run"]
    done = run(*arguments)
    assert done.exit_code == code and message in done.stderr.splitlines()
    assert "Traceback" not in done.output
    assert "Traceback" in run(*arguments, "--traceback").stderr


def test_the_environment_can_ask_for_tracebacks(tmp_path, monkeypatch):
    monkeypatch.setenv("HAPI_TRACEBACK", "1")
    assert "Traceback" in run("report", tmp_path).stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "d.npz", "--data-source", "full"], "--data-source full chooses a copy of fashion-mnist"),
        (["--data", "fashion-mnist", "--measure-budget", "0"], "--measure-budget"),
        (["--data", "fashion-mnist", "--target", "abacus"], "--target"),
        (["--data", "fashion-mnist", "--target", "cuda", "--mcpu", "generic"], "--mcpu is for --target llvm or arm"),
        (["--data", "fashion-mnist", "--arch", "sm_90"], "--arch is for --target cuda; this one is llvm"),
        (["--data", "fashion-mnist", "--target", "cuda", "--device", "no/gpu"], "device='no/gpu' is none of the"),
        (["--data", "fashion-mnist", "--max-accuracy-drop", "2"], "error: SLA: max_accuracy_drop=2.0"),
        ([], "--data"),
    ],
)
def test_contradictions_are_refused_before_anything_is_imported(tmp_path, arguments, message):
    done = run("build", tmp_path / "absent.onnx", "--run", tmp_path / "run", *arguments)
    assert done.exit_code == 2 and message in done.stderr
    assert not (tmp_path / "run").exists()


def test_inspect_lists_the_candidates(model):
    done = run("inspect", model)
    assert done.exit_code == 0, done.output
    assert "exit_00" in done.output and "1x8x8x8" in done.output
    assert "tiny: input 1x3x8x8, 5 classes" in done.output


def test_inspect_of_no_model_is_an_error_of_ours(tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("not a model")
    done = run("inspect", path)
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A compiled module of one exit: the four pixels are the logits, at the exit and at the end."""
    builder = relax.BlockBuilder()

    def answering(name):
        x = relax.Var("x", relax.TensorType((1, 1, 2, 2), "float32"))
        with builder.function(name, [x]):
            with builder.dataflow():
                probabilities = builder.emit(relax.op.nn.softmax(relax.op.reshape(x, (1, 4)), axis=1))
                confidence = builder.emit(relax.op.max(probabilities, axis=1))
                pair = builder.emit_output(relax.Tuple([probabilities, confidence]))
            builder.emit_func_output(pair)

    x = relax.Var("x", relax.TensorType((1, 1, 2, 2), "float32"))
    with builder.function("segment_00", [x]):
        with builder.dataflow():
            same = builder.emit_output(relax.op.add(x, relax.const(0.0)))
        builder.emit_func_output(same)
    answering("exit_00")
    answering("segment_01")
    manifest = {"format": 1, "input_shape": [1, 1, 2, 2], "exits": [{"name": "exit_00", "threshold": 0.8}]}
    module = AttachManifest(json.dumps(manifest))(Route()(builder.finalize()))
    path = tmp_path_factory.mktemp("artifact") / "model.so"
    tvm.compile(module, tvm.target.Target("llvm")).export_library(str(path))
    return path


def save_image(path, *logits):
    np.save(path, np.array(logits, np.float32).reshape(1, 2, 2))
    return path


@pytest.mark.parametrize(
    "logits, options, label, exit_name",
    [
        ((0, 0, 5, 0), [], 2, "exit_00"),
        ((0, 0.5, 0, 0), [], 1, "backbone"),
        ((0, 0, 5, 0), ["--thresholds", "inf"], 2, "backbone"),
        ((0, 0.5, 0, 0), ["--thresholds", "0.3"], 1, "exit_00"),
    ],
)
def test_predict_says_label_confidence_exit_and_latency(
    artifact, tmp_path, logits, options, label, exit_name
):
    image = save_image(tmp_path / "image.npy", *logits)
    done = run("predict", artifact, image, "--json", "--repeats", 3, *options)
    assert done.exit_code == 0, done.output
    answer = json.loads(done.output)
    softmax = np.exp(logits) / np.exp(logits).sum()
    assert (answer["label"], answer["exit_name"]) == (label, exit_name)
    assert answer["probabilities"] == pytest.approx(softmax, abs=1e-6)
    assert answer["confidence"] == pytest.approx(softmax.max(), abs=1e-6)
    assert len(answer["latency_us"]["samples"]) == 3 and answer["latency_us"]["median"] > 0
    text = run("predict", artifact, image, "--repeats", 3, *options).output
    assert f"label       {label}\n" in text and f"exit        {exit_name}" in text


@pytest.mark.parametrize(
    "content, options, message",
    [
        (b"not numpy", [], "is no .npy file"),
        (None, [], "does not exist"),
        (np.zeros((1, 3, 3), np.float32), [], "has shape [1, 3, 3]"),
        (np.zeros((1, 2, 2), np.float32), ["--thresholds", "0.5,0.5"], "has 1 exits"),
        (np.zeros((1, 2, 2), np.float32), ["--thresholds", "high"], "'high' is no list of numbers"),
    ],
)
def test_predict_refuses_what_it_cannot_use(artifact, tmp_path, content, options, message):
    image = tmp_path / "image.npy"
    if isinstance(content, bytes):
        image.write_bytes(content)
    elif content is not None:
        np.save(image, content)
    done = run("predict", artifact, image, *options)
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_predict_refuses_a_library_that_is_none(tmp_path):
    image = save_image(tmp_path / "image.npy", 1, 2, 3, 4)
    done = run("predict", tmp_path / "absent.so", image)
    assert done.exit_code == 2 and done.stderr.startswith("error: ")


def test_report_renders_the_page_again_and_keeps_the_figures(tmp_path):
    page = write_report(tmp_path, sample_report())
    before = page.read_text(encoding="utf-8")
    page.write_text("stale")
    done = run("report", tmp_path)
    assert done.exit_code == 0 and "93.11 %" in done.output
    assert page.read_text(encoding="utf-8") == before
    assert read_report(tmp_path) == sample_report()


def test_names_in_the_summary_are_never_read_as_markup(tmp_path):
    report = sample_report()
    report["design"]["exits"][0]["name"] = "[red]block[/red]"
    write_report(tmp_path, report)
    assert "[red]block[/red]" in run("report", tmp_path).output


def test_report_of_an_empty_folder_names_the_next_step(tmp_path):
    done = run("report", tmp_path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'report.json'} does not exist; `hapi-tvm build")
