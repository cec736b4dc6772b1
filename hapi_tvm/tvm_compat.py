"""Work-arounds for TVM, each with its symptom, the version seen, and what to check before removing it.

Written against apache-tvm 0.27.0.post1 with apache-tvm-ffi 0.1.14.post1. Imports tvm only inside functions.
"""

from __future__ import annotations

import inspect
import linecache
import sys
from importlib import metadata, util

from hapi_tvm.errors import HapiError, TargetError

__all__ = ["FAILED_SECONDS", "carry_errors", "check_versions", "import_tensor_intrin", "skip_torch"]

TVM_FFI_SERIES = "0.1.14"

# Symptom: a tuning run "succeeds" although no candidate ever ran; its records hold 1e10 seconds
# (for example where random_fill_for_measure is missing from a runtime-only library).
# Check before removing: AddToDatabase skips failed results instead of writing this value.
FAILED_SECONDS = 1e9


def check_versions() -> None:
    """Refuse an apache-tvm-ffi that crashes the process.

    Symptom: with 0.1.15.*, the first ``TuneContext(...)`` of apache-tvm 0.27 ends in a segmentation
    fault in ``ToJSONGraph``. Check before removing: tests/test_tuning.py passes with the newer ffi.
    Raises TargetError.
    """
    found = metadata.version("apache-tvm-ffi")
    if not found.startswith(TVM_FFI_SERIES):
        raise TargetError(
            f"apache-tvm 0.27 crashes while tuning with apache-tvm-ffi {found}; "
            f"install apache-tvm-ffi=={TVM_FFI_SERIES}.post1"
        )


def carry_errors() -> None:
    """Let our errors cross TVM: what a pass raises reaches the pass's caller as it is.

    Symptom: TVM calls a Python pass through its ffi, and an error of a type that the ffi does not know
    comes out as RuntimeError (apache-tvm-ffi 0.1.14.post1). Check before removing:
    tests/passes/test_attach_exits.py passes without the call in passes/__init__.py.
    """
    import tvm_ffi

    for kind in HapiError.__subclasses__():
        tvm_ffi.register_error(f"hapi_tvm.{kind.__name__}", kind)


def skip_torch() -> None:
    """Make ``import torch`` fail in this process, a worker that needs no torch.

    Symptom: ``import tvm_ffi`` imports torch wherever it is installed, 3 s and 200 MB in each process
    (apache-tvm-ffi 0.1.14.post1, ``tvm_ffi/__init__.py``). Check before removing: ``import tvm``
    leaves torch out of ``sys.modules``.
    """
    sys.modules.setdefault("torch", None)


class _FrameRecord:
    """The part of ``inspect.FrameInfo`` that TVM's parser reads; the source line only when asked for."""

    __slots__ = ("frame",)

    def __init__(self, frame):
        self.frame = frame

    @property
    def lineno(self) -> int:
        return self.frame.f_lineno

    @property
    def code_context(self) -> list[str] | None:
        line = linecache.getline(self.frame.f_code.co_filename, self.frame.f_lineno)
        return [line] if line else None


def _stack(context: int = 1) -> list[_FrameRecord]:
    frame, records = sys._getframe(1), []
    while frame is not None:
        records.append(_FrameRecord(frame))
        frame = frame.f_back
    return records


def import_tensor_intrin() -> None:
    """Import ``tvm.s_tir.tensor_intrin``, which every ``TuneContext`` needs, in seconds.

    Symptom: that import takes half a minute, because ``prim_func`` calls ``inspect.stack()`` for each
    of some 500 intrinsics and ``inspect.getmodule`` walks ``sys.modules`` for every frozen frame
    (apache-tvm 0.27.0.post1). Check before removing: the plain import takes less than 5 s.
    """
    name = "tvm.s_tir.tensor_intrin"
    if name in sys.modules:
        return
    if util.find_spec(name) is None:
        raise TargetError(f"module {name} is missing: install apache-tvm==0.27.0.post1")
    genuine = inspect.stack
    inspect.stack = _stack
    try:
        __import__(name)
    finally:
        inspect.stack = genuine


def private_copy(mod):
    """An IRModule equal to ``mod`` that shares nothing with it: what a ``Schedule`` may be made of.

    Symptom: a schedule of ``IRModule({"main": func.with_attr(...)})`` changes ``func`` itself, since the
    two functions share a body whose blocks are taken for unshared (apache-tvm 0.27.0.post1). MetaSchedule
    copies the same way. Check before removing: tests/targets/test_rules.py
    ``test_the_kernel_given_is_unchanged`` passes without the copy.

    ``tvm.ir.load_json`` takes twice as long: it rewrites the text for graphs of older versions first.
    """
    from tvm_ffi.serialization import from_json_graph_str, to_json_graph_str

    return from_json_graph_str(to_json_graph_str(mod))
