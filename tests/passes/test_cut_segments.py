"""CutSegments: one function for each segment and branch, which together compute what ``main`` did."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.relax import op
from tvm.script import ir as I
from tvm.script import relax as R

from hapi_tvm.errors import BuildError
from hapi_tvm.passes.attach_exits import AttachExits
from hapi_tvm.passes.cut_segments import CutSegments
from hapi_tvm.records import Option
from hapi_tvm.reference import RESULT, TorchReference
from tests.passes import networks
from tests.passes.test_attach_exits import TINY, lowered_operator


@I.ir_module
class Before:
    @R.function
    def main(x: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            cut_00 = R.nn.relu(x)
            inner = R.sigmoid(cut_00)
            cut_01 = R.add(inner, cut_00)
            logits = R.mean(cut_01, axis=[2, 3])
            early = R.max(cut_00, axis=[2, 3])
            p_0 = R.nn.softmax(early, axis=-1)
            c_0 = R.max(p_0, axis=[1])
            late = R.max(cut_01, axis=[2, 3])
            p_1 = R.nn.softmax(late, axis=-1)
            c_1 = R.max(p_1, axis=[1])
            p = R.nn.softmax(logits, axis=-1)
            c = R.max(p, axis=[1])
            outputs = (p_0, c_0, p_1, c_1, p, c)
            R.output(outputs)
        return outputs


@I.ir_module
class Expected:
    @R.function(private=True)
    def segment_00(t: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            cut_00 = R.nn.relu(t)
            R.output(cut_00)
        return cut_00

    @R.function(private=True)
    def segment_01(t: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            inner = R.sigmoid(t)
            cut_01 = R.add(inner, t)
            R.output(cut_01)
        return cut_01

    @R.function(private=True)
    def segment_02(t: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            logits = R.mean(t, axis=[2, 3])
            p = R.nn.softmax(logits, axis=-1)
            c = R.max(p, axis=[1])
            pair = (p, c)
            R.output(pair)
        return pair

    @R.function(private=True)
    def exit_00_linear(t: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            early = R.max(t, axis=[2, 3])
            p = R.nn.softmax(early, axis=-1)
            c = R.max(p, axis=[1])
            pair = (p, c)
            R.output(pair)
        return pair

    @R.function(private=True)
    def exit_01_conv(t: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            late = R.max(t, axis=[2, 3])
            p = R.nn.softmax(late, axis=-1)
            c = R.max(p, axis=[1])
            pair = (p, c)
            R.output(pair)
        return pair


OPTIONS = (Option(0, "linear"), Option(1, "conv"))


def without_aliases(function: relax.Function) -> relax.Function:
    return relax.transform.CanonicalizeBindings()(tvm.IRModule({"main": function}))["main"]


def test_functions_lie_between_the_cuts():
    got = networks.functions(CutSegments(2, OPTIONS)(Before))
    expected = networks.functions(Expected)
    assert set(got) == set(expected)
    for name, function in expected.items():
        tvm.ir.assert_structural_equal(
            without_aliases(got[name]), without_aliases(function), map_free_vars=True
        )


def test_what_is_blocked_crosses_the_cuts_blocked():
    functions = networks.functions(networks.cut())
    shapes = {name: [int(n) for n in functions[name].params[0].ty.shape] for name in sorted(functions)}
    assert shapes == {
        "exit_00_conv": [1, 1, 8, 8, 8],
        "exit_00_linear": [1, 1, 8, 8, 8],
        "exit_01_conv": [1, 1, 8, 8, 8],
        "exit_01_linear": [1, 1, 8, 8, 8],
        "exit_02_conv": [1, 2, 4, 4, 8],
        "exit_02_linear": [1, 2, 4, 4, 8],
        "segment_00": [1, 3, 8, 8],
        "segment_01": [1, 1, 8, 8, 8],
        "segment_02": [1, 1, 8, 8, 8],
        "segment_03": [1, 2, 4, 4, 8],
    }


def test_input_is_unchanged():
    networks.assert_leaves_its_input_alone(CutSegments(2, OPTIONS), Before)


def test_twice_equals_once():
    networks.assert_twice_equals_once(CutSegments(2, OPTIONS), Before)


def test_segments_one_after_the_other_are_the_backbone():
    mod = CutSegments(len(networks.TENSORS), networks.OPTIONS)(networks.attached())
    batch = np.concatenate(networks.images(8))
    tensor = torch.from_numpy(batch)
    cuts = []
    for index in range(len(networks.TENSORS)):
        tensor = TorchReference(mod, f"segment_{index:02d}").run(tensor)[RESULT]
        cuts.append(tensor)
    probabilities, _ = TorchReference(mod, "segment_03").run(tensor)[RESULT]

    oracle = networks.oracle_tensors(batch)
    for name, cut in zip(networks.TENSORS, cuts, strict=True):
        torch.testing.assert_close(cut, oracle[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(probabilities, torch.softmax(oracle["logits"], dim=1), rtol=1e-5, atol=1e-6)

    for option in networks.OPTIONS:
        name = f"exit_{option.candidate:02d}_{option.kind}"
        answer, confidence = TorchReference(mod, name).run(cuts[option.candidate])[RESULT]
        logits = networks.oracle_branch(cuts[option.candidate], networks.branch_weights()[option])
        torch.testing.assert_close(answer, torch.softmax(logits, dim=1), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(confidence, answer.amax(dim=1), rtol=0, atol=0)


def test_loops_of_the_backbone_stay():
    attached = AttachExits(["relu_1"], TINY)(lowered_operator())
    relax.analysis.well_formed(CutSegments(1, list(TINY))(attached))


def test_aliases_of_the_outputs_are_looked_through():
    """BlockedLayout leaves the outputs behind a second name."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 2), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            p = builder.emit(op.nn.softmax(x))
            pair = builder.emit(relax.Tuple([p, builder.emit(op.max(p, axis=[1]))]))
            output = builder.emit_output(pair)
        builder.emit_func_output(output)
    segment = CutSegments(0, [])(builder.finalize())["segment_00"]
    assert [int(n) for n in segment.ret_ty.fields[0].shape] == [1, 2]


def test_a_missing_cut_is_named():
    with pytest.raises(BuildError, match="binds no cut_02;"):
        CutSegments(3, OPTIONS)(Before)
