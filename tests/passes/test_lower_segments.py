"""LowerSegments: chains of fused kernels, shared by structure, with the numbers of torch."""

from __future__ import annotations

import re

import numpy as np
import tvm
from tvm import relax

from hapi_tvm.passes.attach_exits import AttachExits
from hapi_tvm.passes.blocked_layout import BlockedLayout
from hapi_tvm.passes.cut_segments import CutSegments
from hapi_tvm.passes.lower_segments import LowerSegments
from tests.passes import networks

PROBABILITIES = ["fused_matmul_add", "softmax", "max"]
POOLED = ["mean", "max", "fused_reshape_reshape_concatenate"]  # what lies between is a reshape


def kinds(function: relax.Function) -> list[str]:
    """The kernels in order, without the numbers that tell equal names apart."""
    return [re.sub(r"\d+(?=_|$)", "", re.sub("conv2d", "conv", name)) for name in networks.kernels(function)]


def test_each_function_is_a_chain_of_fused_kernels():
    found = {name: kinds(function) for name, function in networks.functions(networks.lowered()).items()}
    assert found["segment_00"] == ["fused_conv_blocked_relu"]
    assert found["segment_01"] == ["fused_conv_blocked_relu", "fused_conv_blocked_add_relu"]
    assert found["segment_02"] == ["fused_conv_blocked_relu"]
    assert found["segment_03"] == ["mean", *PROBABILITIES]
    assert found["exit_02_linear"] == POOLED + PROBABILITIES
    assert found["exit_02_conv"] == ["fused_conv_blocked_add_relu", *POOLED, *PROBABILITIES]


def test_no_operator_is_left():
    for function in networks.functions(networks.lowered()).values():
        for block in function.body.blocks:
            for binding in block.bindings:
                if isinstance(binding.value, relax.Call):
                    assert binding.value.op.name in ("relax.call_tir", "relax.reshape")


def test_kernels_of_one_structure_are_one():
    functions = networks.functions(networks.lowered())
    assert functions.keys() >= {"exit_00_conv", "exit_01_conv", "exit_02_conv", "segment_03"}
    ends = {networks.kernels(function)[-2] for name, function in functions.items() if "exit" in name}
    assert len(ends) == 1, "every branch ends in the same softmax"
    called = {name for function in functions.values() for name in networks.kernels(function)}
    defined = {var.name_hint for var in networks.lowered().get_global_vars()} - set(functions)
    assert called == defined


def test_a_cut_behind_an_activation_splits_no_kernel():
    """The segments call what the whole backbone calls, kernel by kernel."""

    def lowered(tensors: tuple[str, ...]) -> tvm.IRModule:
        attached = AttachExits(tensors, {})(networks.backbone())
        blocked = BlockedLayout(networks.LANES)(attached)
        with networks.HOST:
            return LowerSegments()(CutSegments(len(tensors), [])(blocked))

    whole = kinds(networks.functions(lowered(()))["segment_00"])
    parts = networks.functions(lowered(("block", "wide")))
    assert kinds(parts["segment_00"]) + kinds(parts["segment_01"]) + kinds(parts["segment_02"]) == whole


def test_input_is_unchanged():
    with networks.HOST:
        networks.assert_leaves_its_input_alone(LowerSegments(), networks.cut())


def test_twice_equals_once():
    with networks.HOST:
        networks.assert_twice_equals_once(LowerSegments(), networks.cut())


def test_numbers_are_those_of_torch():
    machine = networks.machine(networks.lowered())
    for x in networks.images(5):
        tensor, cuts = x, []
        for index in range(3):
            tensor = networks.call(machine[f"segment_{index:02d}"], tensor)
            cuts.append(tensor)
        answers = [
            networks.call(machine[f"exit_{option.candidate:02d}_{option.kind}"], cuts[option.candidate])
            for option in networks.OPTIONS
        ]
        answers.append(networks.call(machine["segment_03"], tensor))
        for (probabilities, confidence), (expected, largest) in zip(
            answers, networks.oracle_answers(x), strict=True
        ):
            np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(confidence, [largest], rtol=1e-4)
