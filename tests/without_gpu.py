"""GPU kernels on the CPU: what a schedule computes, without the device that it is for.

Block by block a scheduled kernel means the same whether the iterations of a loop are spread over threads or run one
after the other; synchronisation is added later, when it is compiled for a GPU. So its loops over threads become plain
loops here, and LLVM compiles the rest.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import tirx

from hapi_tvm.passes.pipeline import to_virtual_machine

LLVM = tvm.target.Target({"kind": "llvm"})


def one_thread(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """A scheduled kernel with plain loops in the place of threads."""

    def plain(loop: tirx.For) -> tirx.For:
        if loop.kind != tirx.ForKind.THREAD_BINDING:
            return loop
        kind = tirx.ForKind.SERIAL
        return tirx.For(loop.loop_var, loop.min, loop.extent, kind, loop.body, None, loop.annotations, loop.step)

    return func.with_body(tvm_ffi.structural_map(func.body, [(tirx.For, plain)]))


def compiled_here(mod: tvm.IRModule) -> tvm.runtime.Executable:
    """A whole scheduled GPU module, compiled for the CPU."""
    functions = {
        var: one_thread(function) if isinstance(function, tirx.PrimFunc) else function
        for var, function in mod.functions_items()
    }
    whole = tvm.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos)
    return tvm.compile(whole, LLVM, relax_pipeline=to_virtual_machine())
