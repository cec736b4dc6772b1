"""Put the schedules that tuning found into a module that is about to be compiled."""

from __future__ import annotations

import pathlib

import tvm

from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.targets import Target
from hapi_tvm.tuning import best_schedules

__all__ = ["apply_schedules"]

_IS_SCHEDULED = "tirx.is_scheduled"


def apply_schedules(mod: tvm.IRModule, target: Target, database_dir: pathlib.Path | str) -> tvm.IRModule:
    """A new module whose PrimFuncs carry their best schedule: tuned, default, or as they were.

    Expects fused PrimFuncs (behind ``FuseTIR``). Names and attributes stay; functions that are
    scheduled already stay as they are. ``mod`` is not changed.
    """
    kernels = {
        variable: Kernel(kernel_key(func), variable.name_hint, func)
        for variable, func in mod.functions_items()
        if isinstance(func, tvm.tirx.PrimFunc) and _IS_SCHEDULED not in (func.attrs or {})
    }
    best = best_schedules(kernels.values(), target, database_dir)
    functions = dict(mod.functions_items())
    for variable, kernel in kernels.items():
        scheduled = best[kernel.key]
        if scheduled.origin != "plain":
            functions[variable] = _with_attributes(scheduled.func, kernel.func)
    return tvm.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos)


def _with_attributes(scheduled: tvm.tirx.PrimFunc, original: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    func = tvm.tirx.PrimFunc(scheduled.params, scheduled.body, scheduled.ret_type, original.attrs)
    return func.with_attr(_IS_SCHEDULED, True)
