"""Run the compiled artifact over the test split, beside the plain backbone, and hold it to the oracle."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from hapi_tvm.datasets import Split
from hapi_tvm.progress import bar
from hapi_tvm.records import CalibrationTable, Design, Option
from hapi_tvm.targets import Target
from hapi_tvm.targets.place import Place

TIGHT_MARGIN = 1e-5
ROUNDS = 3  # an odd number: each sample's latency is a median
CHUNK = 8
SHARE = 512
TIMEOUT_S = 900.0


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


def run_test_split(
    library: pathlib.Path, plain_library: pathlib.Path, thresholds: Sequence[float], split: Split, target: Target
) -> TestRun:
    """One sample at a time, one after the other: artifact and plain backbone take turns.

    library, plain_library: of the design, whose exits have ``thresholds``, and of the backbone without exits. On a
    remote device the split is run ``SHARE`` samples at a time, so that a fault there costs no more than that.
    """
    remote = target.reach.remote
    parts = []
    with bar("run the test split", len(split)) as shown:
        for part in _shares(split, SHARE if remote else len(split)):
            advance = None if remote else shown.advance  # nobody can call it from another process
            ran = target.reach.run(
                run_samples, str(library), str(plain_library), thresholds, part, advance, timeout_s=TIMEOUT_S
            )
            parts.append(_scaled(ran.value, ran.scale))
            if remote:
                shown.advance(len(part))
    return TestRun(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(TestRun)))


def _shares(split: Split, size: int) -> Iterator[Split]:
    for start in range(0, len(split), size):
        yield Split(split.images[start : start + size], split.labels[start : start + size])


def _scaled(run: TestRun, scale: float) -> TestRun:
    return replace(run, latency_us=scale * run.latency_us, plain_us=scale * run.plain_us)


def run_samples(
    place: Place,
    library: str,
    plain_library: str,
    thresholds: Sequence[float],
    split: Split,
    advance: Callable[[int], None] | None,
) -> TestRun:
    """Turns are chunks of ``CHUNK`` samples: short enough that both see the machine alike, and long enough
    that a run seldom finds the other's weights in its cache. Answers are taken in the first turn: on a board each
    is several calls over the network. advance: told how many samples are done."""
    artifact, plain = (place.machine(path) for path in (library, plain_library))
    gates = [place.tensor(np.array(thresholds, np.float32))] if len(thresholds) else []
    run = _empty_run(len(split))
    rounds_us, plain_rounds_us = (np.empty((ROUNDS, len(split))) for _ in range(2))
    start = 0
    for images, _ in split.batches(CHUNK):
        inputs = [place.tensor(image[None]) for image in images]
        for turn in range(ROUNDS):
            for index, image in enumerate(inputs, start):
                rounds_us[turn, index] = artifact.run_us([image, *gates])
                if turn == 0:
                    probabilities, taken, _ = artifact.answer()
                    run.exit[index], run.label[index] = int(taken), int(probabilities.argmax())
            for index, image in enumerate(inputs, start):
                plain_rounds_us[turn, index] = plain.run_us([image])
                if turn == 0:
                    run.plain_label[index] = int(plain.answer()[0].argmax())
        start += len(images)
        if advance is not None:
            advance(len(images))
    run.latency_us[:], run.plain_us[:] = (np.median(rounds, axis=0) for rounds in (rounds_us, plain_rounds_us))
    return run


def _empty_run(count: int) -> TestRun:
    labels = (np.empty(count, np.int64) for _ in range(3))
    times_us = (np.empty(count) for _ in range(2))
    return TestRun(*labels, *times_us)


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
