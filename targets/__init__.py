"""Device families: what is built for them, how a candidate is built and run, how kernels are scheduled."""

from hapi_tvm.targets.base import Target
from hapi_tvm.targets.llvm import llvm

__all__ = ["Target", "llvm"]
