"""The benchmark of whole backbones: its form on a tiny model, and the parts that its figures rest on."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

import bench_models
import bench_runtimes
from tests.checkout import report_of

THREADS = {
    "hapi_us",
    "onnxruntime_us",
    "openvino_us",
    "torch_us",
    "ratio_to_best",
    "quartiles_us",
    "rel_err",
    "torch",
    "other_cores",
}


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return (powers / powers.sum()).astype(np.float32)


def test_the_script_times_four_runtimes_and_prints_the_agreed_form(tmp_path):
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package)
    tables = tmp_path / "kernels.md"
    options = "--models tiny --threads 1 --trials 0 --rounds 3".split()
    report = report_of("bench_backbone.py", *options, "--kernels", str(tables))
    assert set(report) == {"machine", "versions", "rounds", "trials", "models", "geomean_ratio"}
    model = report["models"]["tiny"]
    assert set(model) == {"threads", "tune_s", "max_rel_err", "weights"}
    row = model["threads"]["1"]
    assert set(row) == THREADS
    others_us = [row[f"{name}_us"] for name in ("onnxruntime", "openvino", "torch")]
    assert row["ratio_to_best"] == row["hapi_us"] / min(others_us)
    assert report["geomean_ratio"]["1"] == pytest.approx(row["ratio_to_best"])
    assert 0 < model["max_rel_err"] < 1e-3
    assert all(error < 1e-3 for error in row["rel_err"].values())
    assert row["quartiles_us"]["hapi"][0] <= row["hapi_us"] <= row["quartiles_us"]["hapi"][1]

    rows = [line for line in tables.read_text().splitlines() if line.startswith("| `")]
    assert any("conv2d" in line for line in rows)
    assert sum(float(line.split("|")[-2].strip(" %")) for line in rows) == pytest.approx(100, abs=0.1 * len(rows))


def test_turns_are_timed_per_call_whatever_a_call_lasts():
    """A sleep that is four times as long comes out as four times as long, and each took its turns."""
    calls = {"short": 0, "long": 0}

    def sleeper(name: str, duration_s: float):
        def call() -> None:
            calls[name] += 1
            time.sleep(duration_s)

        return call

    timed = bench_runtimes.time_in_turns(
        {"short": sleeper("short", 0.002), "long": sleeper("long", 0.008)}, rounds=5, turn_ms=8.0
    )
    assert timed["short"].median_us >= 2000
    assert timed["long"].median_us >= 8000
    assert timed["short"].median_us < timed["long"].median_us
    assert calls["short"] > calls["long"] >= 5 * 2  # a warm-up and at least one call a turn
    for timing in timed.values():
        assert timing.quartiles_us[0] <= timing.median_us <= timing.quartiles_us[1]


@pytest.mark.parametrize(("spun_s", "expected_s"), [(0.05, 0.05), (1e9, bench_runtimes.QUIET_LIMIT_MS / 1e3)])
def test_waits_until_spinning_threads_are_asleep_or_patience_ends(spun_s, expected_s):
    """A thread that spins for so long, on a clock that moves by sleeping."""
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    bench_runtimes.wait_until_quiet(lambda: now_s, lambda: min(now_s, spun_s), sleep)
    step_s = bench_runtimes.QUIET_MS / 1e3
    assert expected_s <= now_s <= expected_s + 2 * step_s


def test_the_error_is_that_of_the_logits_whatever_the_softmax_saturates():
    random = np.random.default_rng(0)
    logits = random.normal(0, 8, (1, 50))
    wrong = logits.copy()
    wrong[0, logits.argmin()] += 0.5  # of a class that the softmax gives next to nothing
    reference, found = softmax(logits), softmax(wrong)
    assert np.abs(found - reference).max() < 1e-6
    expected = np.abs((wrong - wrong.mean()) - (logits - logits.mean())).max() / np.abs(logits - logits.mean()).max()
    assert bench_runtimes.relative_error(found, reference) == pytest.approx(expected, rel=1e-3)
    assert bench_runtimes.relative_error(reference, reference) == 0
    assert math.isnan(bench_runtimes.relative_error(np.full((1, 50), np.nan), reference))


# Millions of parameters as commonly stated for these networks, rounded.
PARAMETERS_M = {
    "resnet56": 0.86,
    "vgg16": 14.7,
    "resnet18": 11.7,
    "mobilenet_v2": 3.5,
    "inception": 7.0,
    "efficientnet_lite0": 4.7,
}


@pytest.mark.parametrize("name", bench_models.BENCHMARK)
def test_models_have_their_true_size_and_answer_with_more_than_one_class(name):
    import torch

    model = bench_models.MODELS[name]
    network, _ = bench_models.classifier(model)
    size_m = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert size_m == pytest.approx(PARAMETERS_M[name], rel=0.02)
    with torch.no_grad():
        answer = network(bench_models.image(model))
    assert float(answer.sum()) == pytest.approx(1, abs=1e-5)
    assert 1.5 / answer.shape[1] < float(answer.max()) < 0.95
    again, _ = bench_models.classifier(model)
    with torch.no_grad():
        assert torch.equal(again(bench_models.image(model)), answer)
