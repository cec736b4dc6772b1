"""From a lowered network and a choice of exits to one shared library."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tvm

from hapi_tvm.errors import BuildError
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.kernels import kernel_key
from hapi_tvm.passes.pipeline import assemble, to_virtual_machine
from hapi_tvm.records import Option
from hapi_tvm.targets import Target


def compile_design(
    lowered: tvm.IRModule,
    kept: Sequence[Option],
    manifest: Mapping[str, Any],
    schedules: Mapping[str, Scheduled],
    target: Target,
    dump_dir: pathlib.Path | None = None,
) -> tvm.runtime.Executable:
    """The multi-segment module of a design; with nothing in ``kept``, the plain backbone.

    schedules: by kernel key. Raises BuildError where the compiler refuses.
    """
    module = assemble(lowered, kept, json.dumps(manifest), target.tvm_target, dump_dir)
    return compile_module(module, schedules, target)


def compile_module(
    module: tvm.IRModule, schedules: Mapping[str, Scheduled], target: Target
) -> tvm.runtime.Executable:
    """Compile a module of kernels and the Relax functions that call them; gates need no schedule."""
    functions = {}
    for var, function in module.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc):
            scheduled = schedules.get(kernel_key(function))
            if scheduled is not None:
                function = scheduled.func.with_attr("global_symbol", var.name_hint)
        functions[var] = function
    whole = target.finish(tvm.IRModule(functions, attrs=module.attrs, global_infos=module.global_infos))
    try:
        with target.compiling():
            return tvm.compile(whole, target.tvm_target, relax_pipeline=to_virtual_machine())
    except BuildError:
        raise
    # InternalError, ValueError, TypeError: whatever the compiler's part raises.
    except Exception as error:
        raise BuildError(f"TVM could not compile the design for {target.name}: {error}") from error
