"""Functions of a place, for tests. Workers import this module, and have no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hapi_tvm.targets.place import Place, Program
from hapi_tvm.targets.rpc.gpu_machine import GpuBoardMachine
from hapi_tvm.timeline import Step


def answer(place: Place, program: Program, *arrays: np.ndarray) -> list[np.ndarray]:
    """What ``main`` answers, after a run that took some time."""
    machine = place.machine(program)
    assert machine.run_us([place.tensor(array) for array in arrays]) > 0
    return list(machine.answer())


def answers(place: Place, program: Program, images: np.ndarray, thresholds: np.ndarray) -> list[np.ndarray]:
    """Of an early-exit network to images [N, 1, C, H, W]: probabilities [N, K], exits [N] and confidences [N]."""
    machine, limits = place.machine(program), place.tensor(thresholds)
    found = []
    for image in images:
        machine.run_us([place.tensor(image), limits])
        found.append(machine.answer())
    probabilities, exits, confidences = zip(*found, strict=True)
    return [np.concatenate(probabilities), np.array(exits), np.concatenate(confidences)]


def pieces_us(place: Place, program: Program, steps: Sequence[Step], image: np.ndarray) -> list[float]:
    return place.machine(program).pieces_us([place.tensor(image)], steps, 0.0)


def kernels_us(place: Place, program: Program, names: Sequence[str], image: np.ndarray) -> list[float]:
    return place.machine(program).kernels_us([place.tensor(image)], names)


def fail(place: Place, text: str) -> None:
    raise ValueError(f"{text} on device {place.device.index}")


def device_index(place: Place) -> int:
    return place.device.index


def pieces_us_as_of_a_gpu(place: Place, program: Program, steps: Sequence[Step], image: np.ndarray) -> list[float]:
    machine = GpuBoardMachine(place._board, place.library(program))
    return machine.pieces_us([place.tensor(image)], steps, 0.0)
