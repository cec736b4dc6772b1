"""Device families: what is built for them, how a candidate is built and run, how kernels are scheduled."""

if __name__ != "hapi_tvm.targets":
    raise ImportError(f"this folder was imported as {__name__!r}: import hapi_tvm.targets instead")

from hapi_tvm.targets.arm import arm
from hapi_tvm.targets.base import Target
from hapi_tvm.targets.cuda import cuda
from hapi_tvm.targets.llvm import llvm

__all__ = ["Target", "arm", "cuda", "llvm"]
