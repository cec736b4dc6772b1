"""The way to an Arm board and back, on an emulated one: compiled here, tuned and run there, held to this machine.

Skipped where no emulated board was set up, or nothing links for it here.
"""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import kernel_samples as samples
import numpy as np
import pytest
from tvm import relax

import build_arm
import emulated_board
import hapi_tvm as hapi
from hapi_tvm import targets
from hapi_tvm.datasets import Split
from hapi_tvm.errors import MissingCompiler
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import KernelDatabase, target_folder
from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.report import read_report
from hapi_tvm.targets.here import Here
from hapi_tvm.targets.rpc.fleet import shared_fleet
from hapi_tvm.targets.rpc.tracker import summary
from hapi_tvm.tuning import best_schedules, tune
from tests import boards, place_jobs
from tests.checkout import ROOT
from tests.early_exit import compiled
from tests.families import IMAGE_SHAPE, resnet

SCRIPT = ROOT / "scripts" / "emulated_board.py"
KEY = emulated_board.KEY

pytestmark = pytest.mark.timeout(900)  # emulation is some ten times slower than this machine
SAMPLES = 100
# What the board's own Python runs: no tracker, no torch, no compiler.
PREDICT = """
import sys
sys.path.append(sys.argv[1])
sys.modules["torch"] = None
import numpy
import hapi_tvm
answer = hapi_tvm.load(sys.argv[2]).predict(numpy.load(sys.argv[3]))
numpy.savez(sys.argv[4], probabilities=answer.probabilities, exit=answer.exit)
"""
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def target() -> Iterator[targets.Target]:
    """With a tracker and one emulated board, served as a user does it."""
    folder = emulated_board.default_folder()
    if not emulated_board.is_ready(folder):
        pytest.skip(f"no emulated board in {folder}: `python scripts/emulated_board.py setup` makes one")
    try:
        targets.arm()
    except MissingCompiler as error:
        pytest.skip(str(error))
    with boards.tracker() as tracker:
        command = [sys.executable, str(SCRIPT), "serve", "--tracker", tracker.address, "--key", KEY]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            boards.until(lambda: KEY in summary(tracker).boards, "the emulated board is registered", patience_s=240)
            yield targets.arm(tracker.address, KEY, mcpu="cortex-a72")
        finally:
            shared_fleet(replace(tracker, key=KEY)).close()
            server.send_signal(signal.SIGTERM)
            server.wait(30)
            with pytest.raises(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)


def chosen_thresholds(here: relax.VirtualMachine, images: np.ndarray) -> np.ndarray:
    """Each lets about half of the samples that reach it leave, and lies far from the confidence of every sample."""
    thresholds = np.full(2, np.inf, np.float32)
    for place in range(2):
        thresholds[place] = 0.0
        _, exits, confidences = place_jobs.answers(Here(), here, images, thresholds)
        ranked = np.sort(confidences[exits == place])
        middle = ranked[len(ranked) // 4 : 3 * len(ranked) // 4]
        widest = np.diff(middle).argmax()
        assert middle[widest + 1] - middle[widest] > 10 * TOLERANCE
        thresholds[place] = middle[widest : widest + 2].mean()
    return thresholds


def test_a_resnet_20_with_exits_answers_as_it_does_here(target, tmp_path):
    """Three blocks a stage and 16 channels are a ResNet-20."""
    model = resnet(blocks=3, width=16)
    images = np.random.default_rng(0).standard_normal((SAMPLES, *IMAGE_SHAPE), dtype=np.float32)
    here = compiled(model, targets.llvm(), tmp_path)
    thresholds = chosen_thresholds(here, images)
    expected, exits, _ = place_jobs.answers(Here(), here, images, thresholds)
    with target.reach.staged(compiled(model, target, tmp_path)) as library:
        found, taken, _ = target.reach.run(place_jobs.answers, library, images, thresholds, timeout_s=120).value
    assert set(exits) == {0, 1, 2}
    np.testing.assert_array_equal(taken, exits)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_kernels_are_tuned_on_the_board_and_compute_the_same(target, tmp_path):
    func = samples.blocked(16, 16, 8, lanes=4, epilogue=("bias", "relu"))
    without_relu = samples.blocked(16, 16, 8, lanes=4, epilogue=("bias",))
    kernel = Kernel(kernel_key(func), "convolution", func)
    tune([kernel], target, tmp_path, 4, seed=1)
    measured = KernelDatabase(target_folder(tmp_path, target)).measured(kernel)
    assert len(measured) >= 2 and all(1e-7 < item.median_s < 1 for item in measured)
    scheduled = best_schedules([kernel], target, tmp_path)[kernel.key]
    right, wrong = differences([(func, scheduled.func), (func, without_relu)], target)
    assert right is None and "differs" in wrong


def test_the_tutorial_builds_and_says_that_its_figures_are_emulated(target, unbuilt, tmp_path, monkeypatch):
    """As it stands, but for the network and the images."""
    options = ["--tracker", target.tracker.address, "--key", KEY, "--trials", "0", "--epochs", "2"]
    folders = ["--run", str(tmp_path / "run"), "--database", str(tmp_path / "database")]
    backbone, data = hapi.import_model(unbuilt.model), hapi.load_dataset(unbuilt.data)
    data = replace(data, test=Split(data.test.images[:24], data.test.labels[:24]))
    monkeypatch.setattr(hapi, "import_model", lambda _name: backbone)
    monkeypatch.setattr(hapi, "load_dataset", lambda _name, source: data)
    monkeypatch.setattr(build_arm, "set_up_logging", lambda: None)
    monkeypatch.setattr(sys, "argv", ["build_arm.py", *options, *folders])
    build_arm.main()
    report = read_report(tmp_path / "run")
    assert "emulated" in report["target"] and "emulated" in report["machine"]["cpu"]
    verified = report["verification"]
    assert verified["same_exit"] == verified["same_label"] == verified["samples"] == 24
    assert_predicts_by_itself(tmp_path / "run" / "model.so", data.test.images[0], tmp_path)


def assert_predicts_by_itself(library: pathlib.Path, image: np.ndarray, folder: pathlib.Path) -> None:
    """On the board, without this machine: ``hapi_tvm.load`` takes the library, and answers."""
    np.save(folder / "image.npy", image)
    python = emulated_board.default_folder() / "python"
    paths = [ROOT, library, folder / "image.npy", folder / "answer.npz"]
    done = subprocess.run([python, "-c", PREDICT, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "answer.npz") as answer:
        assert answer["probabilities"].sum() == pytest.approx(1, abs=TOLERANCE)
