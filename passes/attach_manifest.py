"""Carry the manifest inside the module."""

from __future__ import annotations

import tvm
from tvm import relax

MANIFEST = "hapi_manifest"


@tvm.transform.module_pass(opt_level=0, name="AttachManifest")
class AttachManifest:
    """Add ``hapi_manifest() -> str``, so that a ``.so`` tells what it is without a second file.

    Runs last before compilation. An earlier manifest is replaced. text: JSON.
    """

    def __init__(self, text: str):
        self.text = text

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        functions = {var: f for var, f in mod.functions_items() if var.name_hint != MANIFEST}
        builder = relax.BlockBuilder(tvm.IRModule(functions, attrs=mod.attrs, global_infos=mod.global_infos))
        with builder.function(MANIFEST, []):
            builder.emit_func_output(builder.emit(tvm.ir.StringImm(self.text)))
        return builder.finalize()
