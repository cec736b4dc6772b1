"""What the virtual machine adds to kernels: a call, and a gate with its branch. Measured, in microseconds."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax, te

from hapi_tvm.compiling import compile_module
from hapi_tvm.passes.cut_segments import segment_name
from hapi_tvm.passes.route import Route
from hapi_tvm.targets import Target
from hapi_tvm.targets.place import Place, Program

CALLS = 64
EXITS = 16
REPEATS = 200
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Overheads:
    """entry_us: of entering a module and leaving it: from Python here, on a board from TVM's server. call_us: of one
    more kernel in a chain. gate_us: of one more exit that does not fire, beyond the calls of its branch's kernels."""

    entry_us: float
    call_us: float
    gate_us: float


def measure_overheads(target: Target) -> Overheads:
    """Time chains of empty kernels that differ in length, and a router of empty segments and exits."""
    modules = (_chain(1), _chain(1 + CALLS), Route(target.tvm_target)(_empty_segments()))
    with contextlib.ExitStack() as staged:
        programs = [staged.enter_context(target.reach.staged(compile_module(item, {}, target))) for item in modules]
        ran = target.reach.run(medians_in_turns, programs, (0, 0, EXITS), timeout_s=TIMEOUT_S)
    short_us, long_us, routed_us = (ran.scale * median_us for median_us in ran.value)
    call_us = max(0.0, (long_us - short_us) / CALLS)
    # The router runs EXITS + 1 segments of one kernel and EXITS branches of one kernel.
    gate_us = max(0.0, (routed_us - short_us - 2 * EXITS * call_us) / EXITS)
    return Overheads(max(0.0, short_us - call_us), call_us, gate_us)


def medians_in_turns(place: Place, programs: Sequence[Program], exits: Sequence[int]) -> list[float]:
    """Median microseconds of each program's ``main``, warmed up. exits: of each; none ever fires."""
    machines = [place.machine(program) for program in programs]
    inputs = [[place.tensor(array) for array in _inputs(count)] for count in exits]
    pairs = list(zip(machines, inputs, strict=True))
    for machine, tensors in pairs:
        machine.run_us(tensors)
    samples_us = [[machine.run_us(tensors) for machine, tensors in pairs] for _ in range(REPEATS)]
    return [statistics.median(column) for column in zip(*samples_us, strict=True)]


def _inputs(exits: int) -> list[np.ndarray]:
    thresholds = [np.full(exits, np.inf, np.float32)] if exits else []
    return [np.zeros((1, 1), np.float32), *thresholds]


def _chain(length: int) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 1), "float32"))
    value: relax.Expr = x
    with builder.function("main", [x]):
        with builder.dataflow():
            for _ in range(length):
                value = builder.emit_te(_add_one, value, primfunc_name_hint="empty")
            result = builder.emit_output(value)
        builder.emit_func_output(result)
    return builder.finalize()


def _empty_segments() -> tvm.IRModule:
    """Segments and exits as DropExits leaves them, each of one kernel that does next to nothing."""
    builder = relax.BlockBuilder()
    for index in range(EXITS + 1):
        _emit_function(builder, segment_name(index), as_pair=index == EXITS)
        if index < EXITS:
            _emit_function(builder, f"exit_{index:02d}", as_pair=True)
    return builder.finalize()


def _emit_function(builder: relax.BlockBuilder, name: str, as_pair: bool) -> None:
    t = relax.Var("t", relax.TensorType((1, 1), "float32"))
    with builder.function(name, [t]):
        with builder.dataflow():
            kernel = _answer if as_pair else _add_one
            result = builder.emit_output(builder.emit_te(kernel, t, primfunc_name_hint=f"empty_{name}"))
        builder.emit_func_output(result)


def _add_one(x: te.Tensor) -> te.Tensor:
    return te.compute((1, 1), lambda i, j: x[i, j] + 1.0)


def _answer(x: te.Tensor) -> list[te.Tensor]:
    """Probabilities [1, 1] and a confidence [1]."""
    return [te.compute((1, 1), lambda i, j: x[i, j]), te.compute((1,), lambda i: x[i, 0])]
