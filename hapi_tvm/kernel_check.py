"""Compare a scheduled kernel, on its device, with the unscheduled one on this machine, on random inputs.

A remote board that computes garbage is found out, since what is expected is not of its making.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm

from hapi_tvm.kernels import buffer_shapes, workload
from hapi_tvm.targets import Target
from hapi_tvm.targets.here import Here
from hapi_tvm.targets.kernel_timing import Shapes, random_arguments
from hapi_tvm.targets.place import Place, Program

__all__ = ["differences"]

# Float32 sums in another order: the largest difference, relative to the largest value.
TOLERANCE = 1e-3
TIMEOUT_S = 60.0
# The least processor of this machine's kind: the unscheduled kernel need not be fast.
ANY_MACHINE = "llvm"


def differences(pairs: Sequence[tuple[tvm.tirx.PrimFunc, tvm.tirx.PrimFunc]], target: Target) -> list[str | None]:
    """For each (unscheduled, scheduled): None where they agree, else what is wrong, a crash included."""
    calls = [
        (workload(plain), target.finish(workload(scheduled)), target.tvm_target, buffer_shapes(plain))
        for plain, scheduled in pairs
    ]
    found = []
    for outcome in target.reach.attempt(largest_difference, calls, TIMEOUT_S):
        if outcome.error is not None:
            found.append(outcome.error)
        elif not outcome.value <= TOLERANCE:
            found.append(f"its output differs by {outcome.value:.2e} of the largest value; {TOLERANCE:.0e} is allowed")
        else:
            found.append(None)
    return found


def largest_difference(
    place: Place, plain: tvm.IRModule, scheduled: tvm.IRModule, target: tvm.target.Target, shapes: Shapes
) -> float:
    """Over all buffers after the call, inputs included (a kernel must not touch them); NaN unless equal."""
    expected = _run(Here(), tvm.tirx.build(plain, target=ANY_MACHINE), shapes)
    found = _run(place, tvm.tirx.build(scheduled, target=target), shapes)
    worst = 0.0
    for one, other in zip(expected, found, strict=True):
        if np.array_equal(one, other, equal_nan=True):
            continue
        scale = max(float(np.abs(one).max()), np.finfo(np.float32).tiny)
        worst = np.maximum(worst, float(np.abs(one - other).max()) / scale)
    return float(worst)


def _run(place: Place, program: Program, shapes: Shapes) -> list[np.ndarray]:
    arguments = [place.tensor(array) for array in random_arguments(shapes, seed=1)]
    place.library(program)["main"](*arguments)
    return [argument.numpy() for argument in arguments]
