"""What the compiler refuses is an error of ours, which names the target."""

from __future__ import annotations

import pytest
import tvm
from tvm import tirx

from hapi_tvm import targets
from hapi_tvm.compiling import compile_module
from hapi_tvm.errors import BuildError


def test_what_the_compiler_refuses_is_a_build_error():
    unbound = tirx.Evaluate(tirx.call_extern("int32", "abs", tirx.Var("n", "int32")))
    kernel = tirx.PrimFunc([], unbound).with_attr("global_symbol", "kernel")
    with pytest.raises(BuildError, match=r"could not compile the design for llvm .*variables \(n,\) are used"):
        compile_module(tvm.IRModule({"kernel": kernel}), {}, targets.llvm())
