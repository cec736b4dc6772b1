"""Timelines, compiled for the host and run there: the clock is the one that a board would read."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, te

from hapi_tvm.timeline import CLOCK_WORDS, TIMELINE, Step
from tests.passes import networks

NAP_US = 20_000.0
SHAPE = (1, 2)


def napping() -> tvm.IRModule:
    """``quick(t)`` and ``slow(t)``, float32 [1, 2] each; the slow one sleeps for ``NAP_US``."""
    builder = relax.BlockBuilder()
    for name, kernel in (("quick", _copied), ("slow", _copied_after_a_nap)):
        t = relax.Var("t", relax.TensorType(SHAPE, "float32"))
        with builder.function(name, [t]):
            with builder.dataflow():
                result = builder.emit_output(builder.emit_te(kernel, t, primfunc_name_hint=f"{name}_kernel"))
            builder.emit_func_output(result)
    return builder.finalize()


def _copied(t: te.Tensor) -> te.Tensor:
    return te.compute(SHAPE, lambda i, j: t[i, j] + 1.0)


def _copied_after_a_nap(t: te.Tensor) -> te.Tensor:
    """One nap for each of the two values."""
    nap = tvm.tirx.call_extern("int32", "usleep", int(NAP_US / 2))
    return te.compute(SHAPE, lambda i, j: t[i, j] + nap.astype("float32"))


def times_us(mod: tvm.IRModule, x: np.ndarray, calls: int) -> np.ndarray:
    """[calls], between the stamps of ``timeline``, which has so many calls."""
    stamps = networks.call(networks.machine(mod)[TIMELINE], x, np.zeros((calls + 1, CLOCK_WORDS), np.int64))
    assert stamps.shape == (calls + 1, CLOCK_WORDS) and (0 <= stamps[:, 1]).all() and (stamps[:, 1] < 10**9).all()
    return 1e6 * np.diff(stamps[:, 0]) + 1e-3 * np.diff(stamps[:, 1])


def chain(*names: str) -> list[Step]:
    """Each step reads the one before it."""
    return [Step(name, index - 1 if index else None) for index, name in enumerate(names)]
