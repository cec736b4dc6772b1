"""The whole job on a small network: what a build writes, what it says, and what it does not do twice."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

import hapi_tvm as hapi
from hapi_tvm import jsonl
from hapi_tvm.errors import InfeasibleSLA
from hapi_tvm.hashing import digest
from hapi_tvm.kernel_database import target_folder
from hapi_tvm.records import CalibrationTable, Design, ExitGraph, LatencyTable, Option
from hapi_tvm.report import read_report
from hapi_tvm.runfolder import read_record
from hapi_tvm.runtime import load
from hapi_tvm.search.evaluator import evaluate
from tests.small_job import EPOCHS, SIZES, SLA, TARGET, SmallJob, command, log_lines

RECORDS = ("run.json", "exits.json", "branches.npz", "calibrate.npz", "latency.json", "test.npz")
RESULTS = ("design.json", "backbone.so", "model.so", "report.json", "report.html")


def changed_ns(folder: pathlib.Path) -> dict[str, int]:
    """Time of the last change of every file; the lock is written by each build."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock"}


def record(job: SmallJob, name: str, cls: type):
    return read_record(job.run_dir / name, cls)


def placed_options(design: Design, graph: ExitGraph) -> list[tuple[int, float]]:
    """The design as ``evaluate`` takes it."""
    return [
        (graph.options.index(Option(placed.candidate, placed.kind)), placed.threshold) for placed in design.exits
    ]


def test_the_run_folder_holds_every_record_and_nothing_else(built):
    assert set(changed_ns(built.run_dir)) == {*RECORDS, *RESULTS}


def test_the_report_has_the_keys_users_rely_on(built):
    report = read_report(built.run_dir)  # validates
    graph = record(built, "exits.json", ExitGraph)
    assert (report["model"], report["target"]) == ("small", TARGET.name)
    assert report["dataset"].startswith("gratings") and report["splits"] == SIZES
    assert report["candidates"] == len(graph.candidates) >= 3
    assert report["certificate"] is None
    assert set(report["backbone"]["latency_us"]) == {"mean", "p50", "p95"}
    assert set(report["hapi"]["latency_us"]) == {"mean", "p50", "p95", "p99", "worst"}
    assert len(report["hapi"]["exit_rates"]) == len(report["design"]["exits"]) + 1 >= 2
    assert sum(report["hapi"]["exit_rates"]) == pytest.approx(1)
    assert all(kernel["measured"] for kernel in report["kernels"])
    test = record(built, "test.npz", CalibrationTable)
    np.testing.assert_array_equal(test.label, hapi.load_dataset(built.data).test.labels)
    by_torch = float(test.right[:, -1].mean())
    assert report["backbone"]["test_accuracy"] == pytest.approx(by_torch, abs=1 / SIZES["test"])


def test_the_job_is_one_where_exits_matter(built):
    """Else the other tests would show little: the backbone learned something, and samples leave early and late."""
    report = read_report(built.run_dir)
    assert report["backbone"]["test_accuracy"] > 0.8
    rates = report["hapi"]["exit_rates"]
    assert rates[0] > 0.1 and sum(rates[1:]) > 0.02
    assert report["predicted"]["accuracy_drop"] <= SLA.max_accuracy_drop


def test_the_artifact_agrees_with_the_same_design_in_torch(built):
    verification = read_report(built.run_dir)["verification"]
    tight = len(verification["margins_under_1e-5"])
    assert verification["samples"] == SIZES["test"]
    assert verification["same_exit"] >= SIZES["test"] - tight
    assert verification["same_label"] >= SIZES["test"] - tight


def test_sample_by_sample_the_artifact_leaves_where_numpy_says(built):
    """The same through ``predict``, from branches that are evaluated anew."""
    design, graph = record(built, "design.json", Design), record(built, "exits.json", ExitGraph)
    test = record(built, "test.npz", CalibrationTable)
    artifact = load(built.run_dir / "model.so")
    for index, image in enumerate(hapi.load_dataset(built.data).test.images):
        answer = artifact.predict(image)
        for place, (column, threshold) in enumerate(placed_options(design, graph)):
            margin = test.confidence[index, column] - np.float32(threshold)
            if abs(margin) < 1e-5:
                break  # rounding may decide
            if margin >= 0:
                assert (answer.exit, answer.label) == (place, test.prediction[index, column])
                assert answer.confidence == pytest.approx(test.confidence[index, column], abs=1e-5)
                break
        else:
            assert (answer.exit_name, answer.label) == ("backbone", test.prediction[index, -1])


def test_the_prediction_is_the_evaluators(built):
    design, graph = record(built, "design.json", Design), record(built, "exits.json", ExitGraph)
    found = evaluate(
        record(built, "calibrate.npz", CalibrationTable),
        record(built, "latency.json", LatencyTable),
        placed_options(design, graph),
        drop_confidence=SLA.drop_confidence,
    )
    assert found == design.predicted
    report = read_report(built.run_dir)
    assert report["predicted"]["exit_rates"] == list(found.exit_rates)
    assert report["predicted"]["mean_latency_us"] == found.mean_us


def test_the_manifest_is_the_designs(built):
    design = record(built, "design.json", Design)
    manifest = load(built.run_dir / "model.so").manifest
    assert [(e["name"], e["kind"], e["threshold"]) for e in manifest["exits"]] == [
        (placed.name, placed.kind, placed.threshold) for placed in design.exits
    ]
    assert manifest["model_hash"] == hapi.import_model(built.model).hash
    assert load(built.run_dir / "backbone.so").manifest["exits"] == []


def test_the_test_split_is_read_when_the_model_is_finished(built):
    calibrate, test = (record(built, f"{name}.npz", CalibrationTable) for name in ("calibrate", "test"))
    assert (calibrate.split, test.split) == ("calibrate", "test")
    np.testing.assert_array_equal(calibrate.label, hapi.load_dataset(built.data).calibrate.labels)
    written = changed_ns(built.run_dir)
    assert written["calibrate.npz"] < written["design.json"] < written["model.so"] < written["test.npz"]


def test_a_second_build_does_nothing(copied, caplog):
    before = changed_ns(copied.run_dir)
    with caplog.at_level("INFO", logger="hapi_tvm"):
        artifact = copied.build()
    assert changed_ns(copied.run_dir) == before
    assert log_lines(caplog) == []
    assert artifact.manifest == load(copied.run_dir / "model.so").manifest


def test_another_sla_repeats_the_search_and_what_follows_it(copied, caplog):
    before = changed_ns(copied.run_dir)
    with caplog.at_level("INFO", logger="hapi_tvm"):
        copied.build(hapi.SLA(max_accuracy_drop=0.0, drop_confidence=0.5, max_exits=1))
    after = changed_ns(copied.run_dir)
    assert {name for name in after if after[name] != before[name]} == {
        "design.json",
        "model.so",
        "report.json",
        "report.html",
    }
    assert log_lines(caplog) == ["search", "lower", "tune", "choose", "compile", "front", "verify"]
    report = read_report(copied.run_dir)
    assert len(report["design"]["exits"]) <= 1 and report["sla"]["max_accuracy_drop"] == 0.0
    assert report["verification"]["same_exit"] == SIZES["test"]


def test_a_report_that_is_gone_comes_back(copied):
    (copied.run_dir / "report.html").unlink()
    copied.build()
    read_report(copied.run_dir)
    assert (copied.run_dir / "report.html").exists()


def test_trials_tune_and_the_table_follows(copied, caplog):
    before = record(copied, "latency.json", LatencyTable)
    changed = changed_ns(copied.run_dir)
    with caplog.at_level("INFO", logger="hapi_tvm"):
        copied.build(trials=10)
    assert log_lines(caplog)[:5] == ["lower", "tune", "choose", "compile backbone", "measure"]
    (tuned,) = [line for line in caplog.messages if line.startswith("[tune]")]
    assert "10 new trials" in tuned
    after = record(copied, "latency.json", LatencyTable)
    # Where Winograd was chosen, its kernels stand in the segments of before.
    assert len(after.segments) == len(before.segments) and after.branches == before.branches
    assert all(kernel.measured and len(kernel.samples_us) >= 30 for kernel in after.kernels)
    kept = changed_ns(copied.run_dir)
    assert all(kept[name] == changed[name] for name in ("exits.json", "branches.npz", "calibrate.npz"))
    verification = read_report(copied.run_dir)["verification"]
    assert verification["same_exit"] >= SIZES["test"] - len(verification["margins_under_1e-5"])


def test_kernels_that_another_run_has_changed_are_measured_again(copied, caplog):
    """Else the model would be made of other kernels than the plain backbone and the figures it is held to."""
    before, kept = record(copied, "latency.json", LatencyTable), changed_ns(copied.run_dir)
    folder = target_folder(copied.database_dir, TARGET)
    kernel = next(kernel for kernel in before.kernels if "conv2d" in kernel.name)
    lines = [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]
    (used,) = [line["schedule"] for line in lines if line["kernel"] == kernel.key]
    jsonl.append(folder / "rejected.jsonl", {"kernel": kernel.key, "schedule": used, "reason": "as another run may"})

    copied.build()
    assert changed_ns(copied.run_dir) == kept, "a finished run stays as it is"

    with caplog.at_level("INFO", logger="hapi_tvm"):
        copied.build(hapi.SLA(max_accuracy_drop=0.1, drop_confidence=0.5))
    assert {"compile backbone", "measure", "search"} <= set(log_lines(caplog))
    after = record(copied, "latency.json", LatencyTable)
    assert after.schedules != before.schedules
    changed = {kernel.key for kernel in after.kernels if kernel not in before.kernels}
    assert changed == {kernel.key}
    design = record(copied, "design.json", Design)
    assert design.provenance["latency"] == digest(after)


def test_a_measuring_budget_leaves_predictions_but_none_in_the_design(copied):
    copied.build(measure_budget=4)
    table = record(copied, "latency.json", LatencyTable)
    predicted = [kernel for kernel in table.kernels if not kernel.measured]
    assert predicted and all(kernel.sigma_us > 0 and not kernel.samples_us for kernel in predicted)
    report = read_report(copied.run_dir)
    assert all(kernel["measured"] for kernel in report["kernels"])
    assert all(part["measured"] for part in report["segments"] + report["exits_breakdown"])
    before = changed_ns(copied.run_dir)
    copied.build(measure_budget=4)
    assert changed_ns(copied.run_dir) == before


def test_an_sla_out_of_reach_writes_nothing_over(copied):
    before = {name: (copied.run_dir / name).read_bytes() for name in (*RECORDS, *RESULTS)}
    with pytest.raises(InfeasibleSLA) as error:
        copied.build(hapi.SLA(mean_latency_ms=1e-5, max_accuracy_drop=0.0))
    assert error.value.nearest.predicted.mean_us > 0.01
    assert {name: (copied.run_dir / name).read_bytes() for name in before} == before
    assert set(changed_ns(copied.run_dir)) == set(before)


def test_an_sla_out_of_reach_under_a_budget_writes_no_design_over(copied):
    """A design may meet the SLA on predicted latencies only: it is no result before its kernels are measured."""
    before = {name: (copied.run_dir / name).read_bytes() for name in RESULTS if name != "backbone.so"}
    with pytest.raises(InfeasibleSLA):
        copied.build(hapi.SLA(mean_latency_ms=1e-5), measure_budget=2)
    assert {name: (copied.run_dir / name).read_bytes() for name in before} == before


def test_the_ir_is_dumped_after_every_pass(copied, tmp_path):
    hapi.build(
        hapi.import_model(copied.model),
        hapi.load_dataset(copied.data),
        TARGET,
        sla=hapi.SLA(max_accuracy_drop=0.1),
        run_dir=copied.run_dir,
        trials=0,
        epochs=EPOCHS,
        database_dir=copied.database_dir,
        dump_ir=tmp_path / "ir",
    )
    dumped = [path for path in (tmp_path / "ir").rglob("*") if path.is_file()]
    assert all(path.stat().st_size for path in dumped)
    for name in (
        *("AttachExits", "BlockedLayout", "CutSegments", "LowerSegments"),
        *("DropExits", "Route", "AttachManifest"),
    ):
        assert any(name in path.name for path in dumped), name


def test_build_by_command_prints_the_table(copied):
    before = changed_ns(copied.run_dir)
    done = command(*copied.build_options())
    assert done.exit_code == 0, done.output
    report = read_report(copied.run_dir)
    assert f"{100 * report['backbone']['test_accuracy']:.2f} %" in done.stdout
    for placed in report["design"]["exits"]:
        assert placed["name"] in done.stdout
    assert "end of the backbone" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("data set gratings: ")
    assert changed_ns(copied.run_dir) == before


def test_inspect_by_command_lists_what_the_build_found(built):
    done = command("inspect", built.model)
    assert done.exit_code == 0, done.output
    for candidate in record(built, "exits.json", ExitGraph).candidates:
        assert candidate.name in done.stdout and f"{candidate.flops_before:,}" in done.stdout


@pytest.mark.parametrize("thresholds", [None, "inf", "0"])
def test_predict_by_command_says_what_predict_returns(built, tmp_path, thresholds):
    artifact = load(built.run_dir / "model.so")
    image = hapi.load_dataset(built.data).test.images[0]
    np.save(tmp_path / "image.npy", image)
    count = len(artifact.thresholds)
    options = [] if thresholds is None else ["--thresholds", ",".join([thresholds] * count)]
    done = command("predict", artifact.path, tmp_path / "image.npy", "--json", "--repeats", 2, *options)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    answer = artifact.predict(image, None if thresholds is None else [float(thresholds)] * count)
    assert (said["label"], said["exit"], said["exit_name"]) == (answer.label, answer.exit, answer.exit_name)
    assert said["confidence"] == answer.confidence
    assert said["probabilities"] == answer.probabilities.tolist()
    if thresholds is not None:
        assert said["exit"] == (0 if thresholds == "0" else count)


def test_report_by_command_prints_the_same_table(copied):
    built_says = command(*copied.build_options()).stdout
    done = command("report", copied.run_dir)
    assert done.exit_code == 0, done.output
    assert done.stdout == built_says
