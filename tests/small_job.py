"""A whole job in seconds: a small network that was really trained, its images, and a finished build.

The images are gratings in noise. Their contrast varies a lot, so some are easy and an early exit answers
them right, and others are not: thresholds matter, as on real images.
"""

from __future__ import annotations

import contextlib
import logging
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import click.testing
import numpy as np
import pytest
import torch
from torch import nn

import hapi_tvm as hapi
from hapi_tvm.cli import main
from hapi_tvm.runtime import Artifact
from tests.families import BasicBlock, classifier, conv_norm_relu

CLASSES = 4
IMAGE_SHAPE = (1, 12, 12)
SIZES = {"train": 512, "calibrate": 256, "test": 128}
EPOCHS = 12  # of the exits
SLA = hapi.SLA(max_accuracy_drop=0.02, drop_confidence=0.5)
TARGET = hapi.targets.llvm()


@dataclass(frozen=True, slots=True)
class SmallJob:
    """model: ONNX file. data: .npz. run_dir, database_dir: of a build with 0 trials and all kernels measured."""

    model: pathlib.Path
    data: pathlib.Path
    run_dir: pathlib.Path
    database_dir: pathlib.Path

    def copied(self, folder: pathlib.Path) -> SmallJob:
        """The same job with a run folder and a database of its own, to be changed."""
        return replace(
            self,
            run_dir=pathlib.Path(shutil.copytree(self.run_dir, folder / "run")),
            database_dir=pathlib.Path(shutil.copytree(self.database_dir, folder / "database")),
        )

    def build(
        self,
        sla: hapi.SLA = SLA,
        *,
        trials: int = 0,
        measure_budget: int | None = None,
        target: hapi.targets.Target = TARGET,
    ) -> Artifact:
        return hapi.build(
            hapi.import_model(self.model),
            hapi.load_dataset(self.data),
            target,
            sla=sla,
            run_dir=self.run_dir,
            trials=trials,
            measure_budget=measure_budget,
            epochs=EPOCHS,
            database_dir=self.database_dir,
        )

    def build_options(self) -> list[str]:
        """What ``hapi-tvm`` takes to repeat ``build()``."""
        return [
            *("build", str(self.model), "--data", str(self.data), "--run", str(self.run_dir)),
            *("--database", str(self.database_dir), "--trials", "0", "--epochs", str(EPOCHS)),
            *("--max-accuracy-drop", str(SLA.max_accuracy_drop), "--drop-confidence", str(SLA.drop_confidence)),
        ]


def gratings(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [N, 1, 12, 12] about 0, int64 labels: which of four directions the waves run in."""
    random = np.random.default_rng(seed)
    labels = random.integers(CLASSES, size=count)
    angle = labels * np.pi / CLASSES + random.normal(0, 0.1, count)
    rows, columns = np.mgrid[: IMAGE_SHAPE[1], : IMAGE_SHAPE[2]]
    frequency, phase = random.uniform(1.0, 1.6, count), random.uniform(0, 2 * np.pi, count)
    contrast = np.exp(random.uniform(np.log(0.25), np.log(2.0), count))
    along = np.cos(angle)[:, None, None] * columns + np.sin(angle)[:, None, None] * rows
    waves = contrast[:, None, None] * np.sin(frequency[:, None, None] * along + phase[:, None, None])
    images = waves + random.normal(0, 0.75, waves.shape)
    return images[:, None].astype(np.float32), labels


def trained_network(seed: int = 0, epochs: int = 6) -> nn.Module:
    """A stem and two residual blocks, trained on 1,500 gratings that no split holds."""
    images, labels = (torch.from_numpy(array) for array in gratings(1500, seed=100 + seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [conv_norm_relu(1, 16, 3), BasicBlock(16, 16, 1), BasicBlock(16, 32, 2)]
        model = nn.Sequential(*layers, *classifier(32, CLASSES))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(64):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


def write_onnx(model: nn.Module, path: pathlib.Path) -> pathlib.Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(model, (torch.zeros(1, *IMAGE_SHAPE),), path, dynamo=False)
    return path


def write_data(path: pathlib.Path) -> pathlib.Path:
    arrays = {}
    for seed, (name, count) in enumerate(SIZES.items()):
        arrays[f"{name}_images"], arrays[f"{name}_labels"] = gratings(count, seed)
    np.savez(path, **arrays)
    return path


def prepared(folder: pathlib.Path) -> SmallJob:
    """Model and data in ``folder``; the run folder and the database do not exist yet."""
    model = write_onnx(trained_network(), folder / "small.onnx")
    return SmallJob(model, write_data(folder / "gratings.npz"), folder / "run", folder / "database")


def command(*arguments: object) -> click.testing.Result:
    """Run ``hapi-tvm`` in this process; the package's log is as before when it returns."""
    with _restored_log():
        return click.testing.CliRunner().invoke(main, [str(part) for part in arguments], prog_name="hapi-tvm")


@contextlib.contextmanager
def _restored_log() -> Iterator[None]:
    log = logging.getLogger("hapi_tvm")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    try:
        yield
    finally:
        log.handlers[:], log.propagate = handlers, propagate
        log.setLevel(level)


def log_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The stage lines that were logged, such as "[train] ...", without their text: ["train"]."""
    return [
        record.getMessage()[1:].partition("]")[0]
        for record in caplog.records
        if record.name == "hapi_tvm" and record.getMessage().startswith("[")
    ]
