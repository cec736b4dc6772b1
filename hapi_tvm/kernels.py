"""A kernel: one fused function of the compiled network, known by its structure."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
import tvm_ffi
from tvm.s_tir.meta_schedule.arg_info import ArgInfo

from hapi_tvm.tvm_compat import private_copy

__all__ = ["Kernel", "buffer_shapes", "kernel_key", "normalised", "workload"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """key: ``kernel_key(func)``. func: static shapes, float32, unscheduled.

    weight: its share of the tuning budget, any scale, not negative.
    """

    key: str
    name: str
    func: tvm.tirx.PrimFunc
    weight: float = 1.0


def normalised(func: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """``func`` without what depends on where it stands: its name and the passes' notes."""
    return tvm.tirx.PrimFunc(func.params, func.body, func.ret_type).with_attr("tirx.noalias", True)


def kernel_key(func: tvm.tirx.PrimFunc) -> str:
    """Structural hash, 16 hexadecimal digits: the same under other names, in other processes.

    It may change with the version of TVM, whose name is a part of every folder that stores keys.
    """
    return f"{tvm_ffi.structural_hash(normalised(func)) & (1 << 64) - 1:016x}"


def workload(func: tvm.tirx.PrimFunc) -> tvm.IRModule:
    """The module that the tuning database knows the kernel by. It shares nothing with ``func``."""
    return private_copy(tvm.IRModule({"main": normalised(func).with_attr("global_symbol", "main")}))


def buffer_shapes(func: tvm.tirx.PrimFunc) -> tuple[tuple[int, ...], ...]:
    """Shapes of all arguments in order, outputs last."""
    return tuple(tuple(int(size) for size in info.shape) for info in ArgInfo.from_prim_func(func))
