"""Schedules for GPU kernels: TVM's own, without trials (dlight) and with them (MetaSchedule)."""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.s_tir import dlight
from tvm.s_tir import meta_schedule as ms

from hapi_tvm.errors import BuildError
from hapi_tvm.tvm_compat import private_copy

__all__ = ["gpu_default_schedule", "gpu_space", "is_bound", "schedule_unbound"]

# In the order in which TVM's own CUDA pipeline asks them; the last one takes every kernel.
RULES = (
    dlight.gpu.Matmul(),
    dlight.gpu.GEMV(),
    dlight.gpu.Reduction(),
    dlight.gpu.GeneralReduction(),
    dlight.gpu.Fallback(),
)
# Of TVM's: its caller runs on the CPU, so there is nothing to bind.
HOST_FUNCTION = "tirx.is_host_func"


def gpu_default_schedule(func: tirx.PrimFunc, target: tvm.target.Target) -> s_tir.Schedule | None:
    """What the first of TVM's rules that fits makes of a kernel, without any trial; None where none fits."""
    with target:
        for rule in RULES:
            schedule = rule.apply(func, target, False)
            if schedule is not None:
                return schedule
    return None


def gpu_space() -> ms.space_generator.SpaceGenerator:
    """MetaSchedule's rules for float32 on CUDA cores.

    Left to itself MetaSchedule adds the rules for tensor cores, which fit float16 and integers only.
    """
    return ms.space_generator.PostOrderApply(sch_rules="cuda", postprocs="cuda", mutator_probs="cuda")


def is_bound(func: tirx.PrimFunc) -> bool:
    """Whether a kernel says which threads run it: without that no GPU can."""
    found = False

    def visit(loop: tirx.For) -> None:
        nonlocal found
        found |= loop.kind == tirx.ForKind.THREAD_BINDING

    tvm_ffi.structural_walk(func.body, [(tirx.For, visit)], order="post")
    return found


def schedule_unbound(module: tvm.IRModule, target: tvm.target.Target) -> tvm.IRModule:
    """``module`` where every kernel without threads has its default schedule; host functions are left alone.

    Raises BuildError for a kernel that no rule fits: TVM would compile it for the host, to read the GPU's memory.
    """
    functions = {}
    for var, func in module.functions_items():
        if isinstance(func, tirx.PrimFunc) and not func.attrs.get(HOST_FUNCTION) and not is_bound(func):
            func = _scheduled(var.name_hint, func, target)
        functions[var] = func
    return tvm.IRModule(functions, attrs=module.attrs, global_infos=module.global_infos)


def _scheduled(name: str, func: tirx.PrimFunc, target: tvm.target.Target) -> tirx.PrimFunc:
    alone = private_copy(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
    try:
        schedule, reason = gpu_default_schedule(alone["main"], target), "none fits"
    # A rule's mistake surfaces as any type that TVM or the rule raises.
    except Exception as error:
        schedule, reason = None, str(error).strip()
    if schedule is None or not is_bound(schedule.mod["main"]):
        raise BuildError(f"no rule binds kernel {name} to a GPU's threads ({reason}); report the model")
    return schedule.mod["main"].with_attrs(dict(func.attrs))
