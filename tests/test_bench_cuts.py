"""The benchmark of cutting: its form on a tiny model, and that the cut module is cut and answers the same."""

from __future__ import annotations

import pytest

from tests.checkout import report_of


def test_the_script_times_both_modules_and_prints_the_agreed_form():
    pytest.importorskip("onnxscript")
    report = report_of("bench_cuts.py", *"--model tiny --threads 1 --rounds 3".split())
    assert set(report) == {"model", "cuts", "kernel_calls", "kernels_differ", "rounds", "trials", "threads"}
    assert report["cuts"] == 2
    assert report["kernel_calls"] > report["cuts"]
    assert report["kernels_differ"] == 0  # no cut splits a kernel
    row = report["threads"]["1"]
    assert row["max_abs_diff"] == 0  # the same kernels in the same order
    assert row["ratio"] == row["cut_us"]["median_us"] / row["uncut_us"]["median_us"]
    for column in ("cut_us", "uncut_us"):
        first, third = row[column]["quartiles_us"]
        assert 0 < first <= row[column]["median_us"] <= third


def test_every_segment_of_the_cut_module_is_a_function_of_its_own(tmp_path):
    import tvm

    import bench_cuts
    import bench_models
    import hapi_tvm as hapi
    from hapi_tvm.passes.cut_segments import segment_name

    pytest.importorskip("onnxscript")
    model = bench_models.MODELS["tiny"]
    network, _ = bench_models.classifier(model)
    onnx_file = bench_models.export_onnx(network, bench_models.image(model), tmp_path / "tiny.onnx")
    pair = bench_cuts.build(
        hapi.import_model(onnx_file), hapi.targets.llvm(threads=1), tmp_path, tmp_path / "kernels", trials=0
    )
    cut, uncut = hapi.load(pair.cut), hapi.load(pair.uncut)
    pixels = bench_models.image(model).numpy()
    value = tvm.runtime.tensor(pixels)
    for index in range(pair.cuts + 1):
        value = cut._machine[segment_name(index)](value)
    probabilities = value[0].numpy()[0]
    assert (probabilities == cut.predict(pixels).probabilities).all()
    assert (probabilities == uncut.predict(pixels).probabilities).all()
    assert not uncut._machine.module.implements_function(segment_name(1))
