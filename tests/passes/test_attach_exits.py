"""AttachExits: branches hang on the candidates, and compute what torch computes from the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax, topi
from tvm.relax import op

from hapi_tvm.errors import BuildError
from hapi_tvm.passes.attach_exits import AttachExits
from hapi_tvm.passes.graph import dataflow_bindings
from hapi_tvm.records import Option
from hapi_tvm.reference import RESULT, TorchReference
from tests.passes import networks
from tests.passes.graphs import assert_equal, constant, module

LINEAR, CONV = Option(0, "linear"), Option(0, "conv")
TINY = {
    LINEAR: {"weight": np.ones((6, 2), np.float32), "bias": np.zeros(2, np.float32)},
    CONV: {
        "conv_weight": np.ones((4, 3, 3, 3), np.float32),
        "conv_bias": np.zeros(4, np.float32),
        "weight": np.ones((8, 2), np.float32),
        "bias": np.ones(2, np.float32),
    },
}


def tiny(x, emit):
    logits = op.mean(emit(op.nn.relu(x), "relu_1"), axis=[2, 3])
    return emit(logits)


def tiny_with_exits(x, emit):
    """``tiny`` with a linear and a conv branch, operator by operator."""

    def answer(logits):
        probabilities = emit(op.nn.softmax(logits, axis=-1))
        return [probabilities, emit(op.max(probabilities, axis=[1]))]

    def linear(data, channels, weights):
        means = emit(op.reshape(emit(op.mean(data, axis=[2, 3], keepdims=True)), (1, channels)))
        peaks = emit(op.reshape(emit(op.max(data, axis=[2, 3], keepdims=True)), (1, channels)))
        product = emit(op.matmul(emit(op.concat([means, peaks], axis=1)), constant(weights["weight"])))
        return answer(emit(op.add(product, constant(weights["bias"]))))

    cut = emit(op.nn.relu(x), "cut_00")
    logits = emit(op.mean(cut, axis=[2, 3]))
    first = linear(cut, 3, TINY[LINEAR])
    convolved = emit(op.nn.conv2d(cut, constant(TINY[CONV]["conv_weight"]), strides=2, padding=1))
    biased = emit(op.add(convolved, constant(TINY[CONV]["conv_bias"].reshape(1, 4, 1, 1))))
    second = linear(emit(op.nn.relu(biased)), 4, TINY[CONV])
    return relax.Tuple(first + second + answer(logits))


def attach() -> AttachExits:
    return AttachExits(networks.TENSORS, networks.branch_weights())


def test_branches_follow_the_backbone_in_the_order_of_the_options():
    assert_equal(AttachExits(["relu_1"], TINY)(module(tiny)), module(tiny_with_exits))


def test_candidates_bear_their_cut_names():
    names = [binding.var.name for binding in dataflow_bindings(networks.attached()["main"])]
    assert [name for name in names if name.startswith("cut_")] == ["cut_00", "cut_01", "cut_02"]
    assert not set(names) & set(networks.TENSORS)


def test_without_weights_the_backbone_answers_alone():
    assert len(AttachExits(networks.TENSORS, {})(networks.backbone())["main"].ret_ty.fields) == 2


def test_input_is_unchanged():
    networks.assert_leaves_its_input_alone(attach(), networks.backbone())


def test_twice_equals_once():
    networks.assert_twice_equals_once(attach(), networks.backbone())


def test_answers_are_those_of_torch():
    batch = np.concatenate(networks.images(16))
    outputs = TorchReference(networks.attached()).run(torch.from_numpy(batch))[RESULT]
    assert len(outputs) == 2 * (len(networks.OPTIONS) + 1)
    expected = [networks.oracle_answers(batch[index : index + 1]) for index in range(16)]
    for column in range(len(networks.OPTIONS) + 1):
        probabilities = np.concatenate([answers[column][0] for answers in expected])
        confidence = np.array([answers[column][1] for answers in expected])
        np.testing.assert_allclose(outputs[2 * column], probabilities, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outputs[2 * column + 1], confidence, rtol=1e-5)


def lowered_operator() -> tvm.IRModule:
    """A backbone with loops of its own, as a frontend leaves an operator that Relax lacks."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, 3, 6, 6), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            stem = builder.emit(op.nn.relu(x), "relu_1")
            clipped = builder.emit_te(topi.maximum, stem, constant(0.5))
            output = builder.emit_output(builder.emit(op.mean(clipped, axis=[2, 3])))
        builder.emit_func_output(output)
    return builder.finalize()


def test_loops_of_the_backbone_stay():
    attached = AttachExits(["relu_1"], TINY)(lowered_operator())
    relax.analysis.well_formed(attached)
    x = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    *_, probabilities, confidence = TorchReference(attached).run(x)[RESULT]
    expected = torch.softmax(x.relu().clamp(min=0.5).mean((2, 3)), dim=1)
    torch.testing.assert_close(probabilities, expected)
    torch.testing.assert_close(confidence, expected.amax(dim=1))


def test_a_tensor_that_main_does_not_bind_is_named():
    with pytest.raises(BuildError, match="binds no relu_9"):
        AttachExits(["relu_1", "relu_9"], TINY)(module(tiny))


def test_weights_without_a_tensor_are_named():
    with pytest.raises(BuildError, match=r"candidates \[3\].*tensors for 1"):
        AttachExits(["relu_1"], {Option(3, "linear"): TINY[LINEAR]})(module(tiny))
