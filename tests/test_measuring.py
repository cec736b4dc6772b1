"""Measured latencies: raw, kept, never taken twice; a kernel that cannot run is named."""

from __future__ import annotations

import json
import shutil
import statistics

import kernel_samples as samples
import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from hapi_tvm import targets
from hapi_tvm.errors import BuildError
from hapi_tvm.kernel_database import target_folder
from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.measuring import latency, measure

TARGET = targets.llvm()


def kernel(name: str, func: tvm.tirx.PrimFunc) -> Kernel:
    return Kernel(kernel_key(func), name, func)


GOOD = [
    kernel("convolution", samples.blocked(16, 16, 14)),
    kernel("dense", samples.dense(64, 10)),
    kernel("softmax", samples.softmax(10)),
]


@T.prim_func(s_tir=True)
def crashing(a: T.Buffer((4,), "float32"), b: T.Buffer((4,), "float32")):
    for i in range(4):
        with T.sblock("wild"):
            v = T.axis.spatial(4, i)
            b[v] = a[v] + T.Cast("float32", T.call_extern("int32", "raise", T.int32(11)))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    calls = []
    table = measure(GOOD, TARGET, folder, on_kernel=lambda *call: calls.append(call))
    return folder, table, calls


def test_thirty_raw_repeats_of_each(measured):
    _, table, calls = measured
    assert set(table) == {item.key for item in GOOD}
    assert [(done, total) for _, done, total in calls] == [(1, 3), (2, 3), (3, 3)]
    for item in GOOD:
        row = table[item.key]
        assert row.measured and len(row.samples_us) == 30 and row.name == item.name
        assert row.median_us == statistics.median(row.samples_us)
        assert 0.01 < row.median_us < 1e5


def test_a_convolution_costs_more_than_a_softmax(measured):
    _, table, _ = measured
    assert table[GOOD[0].key].median_us > table[GOOD[2].key].median_us


def test_nothing_is_measured_twice(measured):
    folder, table, _ = measured
    path = target_folder(folder, TARGET) / "measurements.jsonl"
    before = path.read_bytes()
    assert measure(GOOD, TARGET, folder, on_kernel=lambda *call: pytest.fail("measured again")) == table
    assert path.read_bytes() == before


def test_a_broken_line_is_measured_again_alone(measured, tmp_path):
    folder = shutil.copytree(measured[0], tmp_path / "copy")
    path = target_folder(folder, TARGET) / "measurements.jsonl"
    good = path.read_text().splitlines()
    path.write_text("\n".join([good[0], good[1][:40], good[2]]))
    again = []
    measure(GOOD, TARGET, folder, on_kernel=lambda *call: again.append(call[0].name))
    assert again == [json.loads(good[1])["name"]]
    assert path.with_name("measurements.jsonl.broken-1").exists()


def test_a_crashing_kernel_is_named_and_costs_no_other(tmp_path):
    bad = kernel("wild", crashing)
    with pytest.raises(BuildError, match=r"1 of 2 kernels .* wild .*SIGSEGV"):
        measure([bad, GOOD[1]], TARGET, tmp_path)
    stored = (target_folder(tmp_path, TARGET) / "measurements.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in stored] == ["dense"]


def test_standard_error_of_the_median_is_calibrated():
    """The spread of medians over many normal samples is what sigma_us says, within a tenth."""
    random = np.random.default_rng(3)
    item = GOOD[0]
    tables = [latency(item, list(random.normal(50.0, 2.0, 200))) for _ in range(400)]
    spread = np.std([table.median_us for table in tables])
    assert np.mean([table.sigma_us for table in tables]) == pytest.approx(spread, rel=0.1)
