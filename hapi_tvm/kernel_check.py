"""Compare a scheduled kernel with the unscheduled one, on random inputs, in a fork."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm

from hapi_tvm.kernels import buffer_shapes, workload
from hapi_tvm.targets import Target
from hapi_tvm.targets.forkserver import shared_server
from hapi_tvm.targets.forkserver_runner import Shapes, random_arguments, runtime_environment

__all__ = ["differences"]

# Float32 sums in another order: the largest difference, relative to the largest value.
TOLERANCE = 1e-3
TIMEOUT_S = 60.0


def differences(pairs: Sequence[tuple[tvm.tirx.PrimFunc, tvm.tirx.PrimFunc]], target: Target) -> list[str | None]:
    """For each (unscheduled, scheduled): None where they agree, else what is wrong, a crash included."""
    calls = [
        (workload(plain), target.finish(workload(scheduled)), target.tvm_target, buffer_shapes(plain))
        for plain, scheduled in pairs
    ]
    outcomes = shared_server().map(
        largest_difference, calls, TIMEOUT_S, workers=2, environment=runtime_environment(target.threads)
    )
    found = []
    for outcome in outcomes:
        if outcome.error is not None:
            found.append(outcome.error)
        elif not outcome.value <= TOLERANCE:
            found.append(f"its output differs by {outcome.value:.2e} of the largest value; {TOLERANCE:.0e} is allowed")
        else:
            found.append(None)
    return found


def largest_difference(
    plain: tvm.IRModule, scheduled: tvm.IRModule, target: tvm.target.Target, shapes: Shapes
) -> float:
    """Over all buffers after the call, inputs included (a kernel must not touch them); NaN unless equal."""
    expected, found = (_run(module, target, shapes) for module in (plain, scheduled))
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if np.array_equal(one, other, equal_nan=True):
            continue
        scale = max(float(np.abs(one).max()), np.finfo(np.float32).tiny)
        worst = np.maximum(worst, float(np.abs(one - other).max()) / scale)
    return float(worst)


def _run(module: tvm.IRModule, target: tvm.target.Target, shapes: Shapes) -> list[np.ndarray]:
    library = tvm.tirx.build(module, target=target)
    arguments = random_arguments(shapes, seed=1)
    library["main"](*arguments)
    return [argument.numpy() for argument in arguments]
