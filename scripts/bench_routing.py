#!/usr/bin/env python3
"""What routing costs: the artifact with every threshold at infinity against the plain backbone and its branches.

Reads a run folder. All of them run in turns in one process; figures are medians in microseconds, JSON
on stdout. ``ratio`` is the artifact's time over the sum of the others.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import numpy as np
import tvm

import hapi_tvm as hapi


def timed_us(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e6 * (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--repeats", type=int, default=500)
    args = parser.parse_args()

    artifact, plain = hapi.load(args.run / "model.so"), hapi.load(args.run / "backbone.so")
    image = np.random.default_rng(0).random(artifact.input_shape, dtype=np.float32)
    routed = artifact.prepare(image, [np.inf] * len(artifact.thresholds))
    straight = plain.prepare(image)
    calls = {"infinity": lambda: artifact.run(*routed), "plain": lambda: plain.run(*straight)}
    tensor: tvm.runtime.Tensor = routed[0]
    for index in range(len(artifact.thresholds)):
        tensor = artifact.function(f"segment_{index:02d}")(tensor)
        branch = artifact.function(f"exit_{index:02d}")
        calls[f"exit_{index:02d}"] = lambda branch=branch, tensor=tensor: branch(tensor)

    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(args.repeats):
        for name, call in calls.items():
            samples[name].append(timed_us(call))
    median_us = {name: statistics.median(values) for name, values in samples.items()}
    rest_us = sum(value for name, value in median_us.items() if name != "infinity")
    print(json.dumps({"median_us": median_us, "ratio": median_us["infinity"] / rest_us, "repeats": args.repeats}))


if __name__ == "__main__":
    main()
