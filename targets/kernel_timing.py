"""Time one kernel by itself, in a loop."""

from __future__ import annotations

import numpy as np
import tvm
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.targets.place import Place

__all__ = ["Shapes", "random_arguments", "shapes_of", "time_library"]

Shapes = tuple[tuple[int, ...], ...]


def shapes_of(candidate: ms.runner.RunnerInput) -> Shapes:
    """Of a candidate's arguments, outputs last."""
    return tuple(tuple(int(size) for size in info.shape) for info in candidate.args_info)


def random_arguments(shapes: Shapes, seed: int) -> list[np.ndarray]:
    """float32, standard normal: no denormals, which are slow."""
    random = np.random.default_rng(seed)
    return [random.standard_normal(shape, dtype=np.float32) for shape in shapes]


def time_library(place: Place, path: str, shapes: Shapes, repeats: int, min_repeat_ms: int) -> list[float]:
    """Seconds of one call, ``repeats`` times, each the mean over at least ``min_repeat_ms``; warmed up."""
    library: tvm.runtime.Module = place.library(path)
    arguments = [place.tensor(array) for array in random_arguments(shapes, seed=0)]
    evaluator = library.time_evaluator("main", place.device, number=1, repeat=repeats + 1, min_repeat_ms=min_repeat_ms)
    return [float(seconds) for seconds in evaluator(*arguments).results][1:]
