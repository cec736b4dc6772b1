"""The plain backbone timed as a whole."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from hapi_tvm.targets import Target
from hapi_tvm.targets.place import Place

__all__ = ["whole_run_us"]

RUNS = 200
TIMEOUT_S = 600.0


def whole_run_us(library: pathlib.Path, input_shape: Sequence[int], target: Target) -> float:
    """Median time of one call of the plain backbone, as a user would see it."""
    ran = target.reach.run(median_us, str(library), input_shape, timeout_s=TIMEOUT_S)
    return ran.scale * ran.value


def median_us(place: Place, library: str, input_shape: Sequence[int]) -> float:
    machine = place.machine(library)
    image = [place.tensor(np.random.default_rng(0).random(input_shape, dtype=np.float32))]
    return statistics.median(machine.run_us(image) for _ in range(RUNS))
