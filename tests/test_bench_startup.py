"""The benchmark of starting up: its form on a tiny model."""

from __future__ import annotations

import pytest

from tests.checkout import report_of

COLUMNS = {"import_ms", "load_ms", "first_run_ms", "second_run_us", "total_ms"}


def test_the_script_times_fresh_processes_and_prints_the_agreed_form():
    pytest.importorskip("onnxscript")
    report = report_of("bench_startup.py", "tiny", "--samples", "3")
    assert set(report) == COLUMNS | {"model", "library_bytes", "threads", "samples"}
    for column in COLUMNS:
        first, third = report[column]["quartiles"]
        assert 0 < first <= report[column]["median"] <= third
    # To import TVM takes far longer than to run a tiny network, the first time too.
    assert report["import_ms"]["median"] > report["first_run_ms"]["median"]
    assert report["total_ms"]["median"] > report["import_ms"]["median"]
    assert report["second_run_us"]["median"] < 1e3 * report["load_ms"]["median"]
