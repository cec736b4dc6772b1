"""Run the compiled artifact over the test split, beside the plain backbone, and hold it to the oracle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hapi_tvm.datasets import Split
from hapi_tvm.progress import bar
from hapi_tvm.records import CalibrationTable, Design, Option
from hapi_tvm.runtime import Artifact

TIGHT_MARGIN = 1e-5
ROUNDS = 3  # an odd number: each sample's latency is a median
CHUNK = 8


@dataclass(frozen=True, slots=True)
class TestRun:
    """exit, label: int [N], of the artifact. plain_label: int [N], of the plain backbone.

    latency_us, plain_us: float64 [N], median of ``ROUNDS`` runs of each sample.
    """

    exit: np.ndarray
    label: np.ndarray
    plain_label: np.ndarray
    latency_us: np.ndarray
    plain_us: np.ndarray


@dataclass(frozen=True, slots=True)
class Agreement:
    """same_exit, same_label: on how many samples artifact and oracle agree.

    tight: (sample, exit index, confidence minus threshold) where the oracle's margin is under
    ``TIGHT_MARGIN``: rounding may decide there.
    """

    same_exit: int
    same_label: int
    tight: tuple[tuple[int, int, float], ...]


def run_test_split(artifact: Artifact, plain: Artifact, split: Split) -> TestRun:
    """One sample at a time, one after the other: artifact and plain backbone take turns.

    Turns are chunks of ``CHUNK`` samples: short enough that both see the machine alike, and long enough
    that a run seldom finds the other's weights in its cache.
    """
    count = len(split)
    taken, label, plain_label = (np.empty(count, np.int64) for _ in range(3))
    latency_us, plain_us = (np.empty((ROUNDS, count)) for _ in range(2))
    with bar("run the test split", count) as shown:
        start = 0
        for images, _ in split.batches(CHUNK):
            inputs = [artifact.prepare(image) for image in images]
            plain_inputs = [plain.prepare(image) for image in images]
            for turn in range(ROUNDS):
                for offset, prepared in enumerate(inputs):
                    answer, latency_us[turn, start + offset] = _timed(artifact, prepared)
                    taken[start + offset] = int(answer[1].numpy())
                    label[start + offset] = int(answer[0].numpy().argmax())
                for offset, prepared in enumerate(plain_inputs):
                    answer, plain_us[turn, start + offset] = _timed(plain, prepared)
                    plain_label[start + offset] = int(answer[0].numpy().argmax())
            start += len(images)
            shown.advance(len(images))
    return TestRun(taken, label, plain_label, np.median(latency_us, axis=0), np.median(plain_us, axis=0))


def _timed(artifact: Artifact, inputs: Sequence) -> tuple[tuple, float]:
    began = time.perf_counter()
    answer = artifact.run(*inputs)
    return answer, 1e6 * (time.perf_counter() - began)


def compare(run: TestRun, oracle: CalibrationTable, design: Design) -> Agreement:
    """Hold the artifact's answers to the same design evaluated in NumPy on torch's outputs."""
    columns = [oracle.options.index(Option(placed.candidate, placed.kind)) for placed in design.exits]
    thresholds = np.array([placed.threshold for placed in design.exits], np.float32)
    margin = oracle.confidence[:, columns] - thresholds
    fires = np.concatenate([margin >= 0, np.ones((len(oracle.label), 1), bool)], axis=1)
    taken = fires.argmax(axis=1)
    column = np.array([*columns, len(oracle.options)])[taken]
    label = oracle.prediction[np.arange(len(taken)), column]
    arrived = np.arange(len(columns)) <= taken[:, None]
    tight = np.argwhere(arrived & (np.abs(margin) < TIGHT_MARGIN))
    return Agreement(
        same_exit=int((run.exit == taken).sum()),
        same_label=int((run.label == label).sum()),
        tight=tuple((int(n), int(i), float(margin[n, i])) for n, i in tight),
    )
