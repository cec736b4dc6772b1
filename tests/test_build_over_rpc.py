"""The small job built on boards: a tracker and two servers of TVM on this machine, over loopback."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import hapi_tvm as hapi
from hapi_tvm import verifying
from hapi_tvm.datasets import load_dataset
from hapi_tvm.errors import ArtifactError
from hapi_tvm.report import read_report
from hapi_tvm.runtime import load
from hapi_tvm.targets.rpc.fleet import shared_fleet
from tests import boards
from tests.boards import KEY
from tests.small_job import SIZES, SmallJob, log_lines


@pytest.fixture(scope="module")
def over_rpc(unbuilt, tmp_path_factory):
    """The job, finished on two boards, and its target; the test split is run in three parts."""
    folder = tmp_path_factory.mktemp("over_rpc")
    job = replace(unbuilt, run_dir=folder / "run", database_dir=folder / "database")
    with boards.tracker() as tracker, boards.board(tracker, plain=True), boards.board(tracker, plain=True):
        target = hapi.targets.llvm(tracker=tracker.address, key=KEY)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(verifying, "SHARE", SIZES["test"] // 2 - 1)
            job.build(target=target)
        yield job, target
        shared_fleet(tracker).close()


def test_the_artifact_takes_the_exits_that_the_oracle_takes(over_rpc):
    job, target = over_rpc
    report = read_report(job.run_dir)
    verified = report["verification"]
    assert verified["same_exit"] == verified["same_label"] == verified["samples"] > 0
    assert report["target"] == target.name and target.name.endswith(f"key={KEY}")
    assert report["machine"]["cpu"].startswith(f"{target.mcpu}, key {KEY} (speed of 127.0.0.1:")


def test_it_answers_as_the_local_build_does(over_rpc, built: SmallJob):
    """The boards are this very machine, so that their libraries load here too."""
    ours, theirs = (load(job.run_dir / "backbone.so") for job in (built, over_rpc[0]))
    for image in load_dataset(built.data).test.images[:16]:
        np.testing.assert_allclose(ours.predict(image).probabilities, theirs.predict(image).probabilities, atol=1e-5)


def test_its_accuracy_is_that_of_the_local_build_without_exits(over_rpc, built: SmallJob):
    found, expected = (read_report(job.run_dir)["backbone"]["test_accuracy"] for job in (over_rpc[0], built))
    assert found == expected


def test_every_figure_is_there_and_was_measured(over_rpc):
    report = read_report(over_rpc[0].run_dir)
    assert all(kernel["measured"] and kernel["median_us"] > 0 for kernel in report["kernels"])
    for row in (report["backbone"], report["hapi"]):
        assert 1 < row["latency_us"]["mean"] < 1e5
    assert report["segments"] and all(0 <= segment["median_us"] < 1e5 for segment in report["segments"])


def test_measurements_are_kept_by_the_key(over_rpc):
    job, target = over_rpc
    (folder,) = job.database_dir.iterdir()
    assert f"key-{KEY}" in folder.name
    measured = [json.loads(line) for line in (folder / "measurements.jsonl").read_text().splitlines()]
    assert measured and {line["target"] for line in measured} == {target.name}


def test_a_second_build_needs_no_board(over_rpc, caplog):
    job, target = over_rpc
    with caplog.at_level("INFO", logger="hapi_tvm"):
        artifact = job.build(target=target)
    assert {"measure", "compile", "verify"}.isdisjoint(log_lines(caplog))
    assert artifact.manifest["target"] == target.name
    with pytest.raises(ArtifactError, match="another machine"):
        artifact.predict(load_dataset(job.data).test.images[0])
