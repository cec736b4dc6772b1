"""A build that certifies: what the search may see, what is built, and where the certificate is told."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

import hapi_tvm as hapi
from hapi_tvm import recordio
from hapi_tvm.certify import gap_between, hold_out
from hapi_tvm.certify.counts import Counts
from hapi_tvm.errors import SLAError
from hapi_tvm.hashing import digest
from hapi_tvm.records import CalibrationTable, Certificate, Design, Ladder
from hapi_tvm.report import read_report
from hapi_tvm.runfolder import read_record
from hapi_tvm.runtime import load
from tests.small_job import SIZES, SmallJob, command, log_lines

LOOSE = hapi.SLA(max_accuracy_drop=0.15, drop_confidence=0.5, certify_delta=0.2)
TIGHT = hapi.SLA(max_accuracy_drop=0.02, drop_confidence=0.5, certify_delta=0.1)


def record(job: SmallJob, name: str, cls: type):
    return read_record(job.run_dir / name, cls)


@pytest.fixture(scope="module")
def certified(built, tmp_path_factory):
    job = built.copied(tmp_path_factory.mktemp("certified"))
    job.build(LOOSE)
    return job


def halves(job: SmallJob) -> tuple[CalibrationTable, CalibrationTable]:
    return hold_out(record(job, "calibrate.npz", CalibrationTable), seed=0)


def test_the_splits_share_nothing_and_the_search_saw_its_own_half(certified):
    searched, unseen = halves(certified)
    sizes = read_report(certified.run_dir)["splits"]
    assert sizes == SIZES | {"calibrate": len(searched.label), "certify": len(unseen.label)}
    assert sizes["calibrate"] + sizes["certify"] == SIZES["calibrate"]
    for design in record(certified, "ladder.json", Ladder).designs:
        assert design.provenance["calibration"] == digest(searched)


def test_what_is_built_is_the_last_that_passed(certified):
    _, unseen = halves(certified)
    designs = record(certified, "ladder.json", Ladder).designs
    certificate = record(certified, "certificate.json", Certificate)
    assert certificate.certified and certificate.n == len(unseen.label)
    assert (certificate.epsilon, certificate.delta) == (0.15, 0.2)
    for design, tested in zip(designs, certificate.tests, strict=False):
        counts = Counts.of_design(unseen, design)
        assert (tested.lost, tested.gained) == (counts.lost, counts.gained)
        assert tested.passed == (tested.p_value <= 0.2)
    passed = sum(tested.passed for tested in certificate.tests)
    design = record(certified, "design.json", Design)
    assert design == designs[passed - 1] and design.exits
    manifest = load(certified.run_dir / "model.so").manifest
    assert [exit_["threshold"] for exit_ in manifest["exits"]] == [placed.threshold for placed in design.exits]


def test_manifest_report_and_command_tell_the_certificate(certified):
    certificate = record(certified, "certificate.json", Certificate)
    assert load(certified.run_dir / "model.so").manifest["certificate"] == recordio.to_json(certificate)
    assert recordio.from_json(Certificate, read_report(certified.run_dir)["certificate"]) == certificate
    assert load(certified.run_dir / "backbone.so").manifest["certificate"] is None
    assert certificate.verdict in command("report", certified.run_dir).stdout
    assert certificate.verdict[1:] in (certified.run_dir / "report.html").read_text()


def test_the_gap_is_between_the_search_and_the_test_split(certified):
    design = record(certified, "design.json", Design)
    counts = [
        Counts.of_design(table, design)
        for table in (halves(certified)[0], record(certified, "test.npz", CalibrationTable))
    ]
    found = read_report(certified.run_dir)["generalisation"]
    assert found == asdict(gap_between(*counts))
    assert found["searched_drop"] == design.predicted.accuracy_drop


def test_a_second_build_does_nothing(certified, caplog):
    before = {path.name: path.stat().st_mtime_ns for path in certified.run_dir.iterdir() if path.name != ".lock"}
    with caplog.at_level("INFO", logger="hapi_tvm"):
        certified.build(LOOSE)
    assert log_lines(caplog) == []
    assert {name: (certified.run_dir / name).stat().st_mtime_ns for name in before} == before


def test_too_few_samples_are_never_a_silent_pass(built, tmp_path, caplog):
    job = built.copied(tmp_path)
    job.build(TIGHT)
    certificate = record(job, "certificate.json", Certificate)
    assert not certificate.certified
    assert certificate.verdict.startswith("not certified: ")
    assert [line.message for line in caplog.records if line.levelname == "WARNING"] == [certificate.verdict]
    design = record(job, "design.json", Design)
    assert design == record(job, "ladder.json", Ladder).designs[0]
    assert load(job.run_dir / "model.so").manifest["certificate"]["certified"] is False

    job.build()
    assert not (job.run_dir / "certificate.json").exists(), "it would speak of another design"
    assert load(job.run_dir / "model.so").manifest["certificate"] is None


def test_without_being_asked_nothing_is_held_out(built):
    report = read_report(built.run_dir)
    assert report["splits"] == SIZES and report["certificate"] is None
    assert load(built.run_dir / "model.so").manifest["certificate"] is None
    table = record(built, "calibrate.npz", CalibrationTable)
    assert record(built, "design.json", Design).provenance["calibration"] == digest(table)
    assert np.isfinite(list(report["generalisation"].values())).all()


@pytest.mark.parametrize("delta", [0.0, 1.0, 90.0, float("nan")])
def test_a_risk_is_between_0_and_1(delta):
    with pytest.raises(SLAError, match=rf"certify_delta={delta} must lie in \(0, 1\); 0.1 is a confidence of 90 %"):
        hapi.SLA(max_accuracy_drop=0.01, certify_delta=delta)


@pytest.mark.parametrize("asked", [{"mean_latency_ms": 1.0}, {"max_accuracy_drop": 0.0}, {"max_accuracy_drop": 1.0}])
def test_what_is_certified_is_a_drop(asked):
    with pytest.raises(SLAError, match=r"certify_delta=0.1 with max_accuracy_drop=.*; what is certified is the drop"):
        hapi.SLA(certify_delta=0.1, **asked)
