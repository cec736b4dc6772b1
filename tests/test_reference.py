"""The reference evaluator: each rule against TVM's own kernels, batches, and operators without a rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
from tvm import relax, topi
from tvm.relax import op

from hapi_tvm.errors import ModelError
from hapi_tvm.importing import import_model
from hapi_tvm.passes.find_cuts import find_cuts
from hapi_tvm.reference import TorchReference
from hapi_tvm.reference_ops import RULES
from tests.families import FAMILIES, IMAGE_SHAPE
from tests.passes.graphs import constant, module, random

SHAPE = (1, 4, 7, 6)


def unary(function):
    return lambda x, emit: emit(function(x))


def with_positive(function):
    return lambda x, emit: emit(function(emit(op.add(emit(op.abs(x)), constant(0.5)))))


def with_constant(function, *shape):
    return lambda x, emit: emit(function(x, constant(random(*shape))))


def conv2d(weight=(6, 4, 3, 3), **options):
    return lambda x, emit: emit(op.nn.conv2d(x, constant(random(*weight)), **options))


def pool(function, **options):
    return lambda x, emit: emit(function(x, **options))


def split_and_concat(x, emit):
    parts = emit(op.split(x, [1, 3], axis=1))
    return emit(op.concat([emit(relax.TupleGetItem(parts, i)) for i in (2, 0, 1)], axis=1))


def attention(x, emit):
    rows = emit(op.reshape(x, (1, 4, 42)))
    return emit(op.matmul(rows, emit(op.permute_dims(rows, (0, 2, 1)))))


CASES = {
    "conv2d": conv2d(padding=1),
    "conv2d strided, dilated": conv2d(strides=2, dilation=2, padding=(2, 1)),
    "conv2d padded on one side": conv2d(strides=2, padding=(0, 0, 1, 1)),
    "conv2d depthwise": conv2d((4, 1, 3, 3), groups=4),
    "conv2d grouped": conv2d((6, 2, 1, 1), groups=2),
    "conv2d_transpose": lambda x, emit: emit(
        op.nn.conv2d_transpose(x, constant(random(4, 5, 3, 3)), strides=2, padding=1, output_padding=1)
    ),
    "max_pool2d": pool(op.nn.max_pool2d, pool_size=(3, 3), strides=(2, 2), padding=(1, 1)),
    "max_pool2d ceil": pool(op.nn.max_pool2d, pool_size=(2, 2), strides=(2, 2), ceil_mode=True),
    "avg_pool2d": pool(op.nn.avg_pool2d, pool_size=(3, 3), strides=(2, 2), padding=(1, 1)),
    "avg_pool2d include": pool(
        op.nn.avg_pool2d, pool_size=(3, 3), strides=(1, 1), padding=(1, 1), count_include_pad=True
    ),
    "avg_pool2d ceil": pool(op.nn.avg_pool2d, pool_size=(2, 2), strides=(2, 2), ceil_mode=True),
    "adaptive_avg_pool2d": pool(op.nn.adaptive_avg_pool2d, output_size=(3, 2)),
    "matmul": with_constant(op.matmul, 6, 5),
    "matmul of two computed": attention,
    "mean": lambda x, emit: emit(op.mean(x, axis=[2, 3])),
    "sum": lambda x, emit: emit(op.sum(x, axis=[1], keepdims=True)),
    "max": lambda x, emit: emit(op.max(x, axis=[-1])),
    "min": lambda x, emit: emit(op.min(x, axis=[2, 3], keepdims=True)),
    "reshape": lambda x, emit: emit(op.reshape(x, (1, 2, 2, 42))),
    "squeeze": lambda x, emit: emit(op.squeeze(emit(op.mean(x, axis=[2, 3], keepdims=True)), axis=[2, 3])),
    "expand_dims": lambda x, emit: emit(op.expand_dims(x, axis=2)),
    "permute_dims": lambda x, emit: emit(op.permute_dims(x, (0, 2, 3, 1))),
    "split, concat": split_and_concat,
    "softmax": lambda x, emit: emit(op.nn.softmax(x, axis=1)),
    "log_softmax": lambda x, emit: emit(op.nn.log_softmax(x, axis=-1)),
    "clip": lambda x, emit: emit(op.clip(x, -0.5, 0.25)),
    "leakyrelu": lambda x, emit: emit(op.nn.leakyrelu(x, 0.2)),
    "prelu": lambda x, emit: emit(op.nn.prelu(x, constant(random(4)), axis=1)),
    "relu": unary(op.nn.relu),
    "silu": unary(op.nn.silu),
    "gelu": unary(op.nn.gelu),
    "gelu_tanh": unary(op.nn.gelu_tanh),
    "sigmoid": unary(op.sigmoid),
    "tanh": unary(op.tanh),
    "exp": unary(op.exp),
    "erf": unary(op.erf),
    "square": unary(op.square),
    "abs": unary(op.abs),
    "negative": unary(op.negative),
    "log": with_positive(op.log),
    "sqrt": with_positive(op.sqrt),
    "rsqrt": with_positive(op.rsqrt),
    "add": with_constant(op.add, 1, 4, 1, 1),
    "subtract": with_constant(op.subtract, 4, 1, 1),
    "multiply": with_constant(op.multiply, 1),
    "divide": with_constant(op.divide, 1, 4, 1, 1),
    "maximum": with_constant(op.maximum, 1, 4, 7, 6),
    "minimum": with_constant(op.minimum, 6),
    "power": lambda x, emit: emit(op.power(emit(op.abs(x)), constant(1.5))),
    # Without a rule: compiled by TVM, one sample at a time.
    "strided_slice": lambda x, emit: emit(op.strided_slice(x, [2], [1], [5])),
    "resize2d": unary(lambda x: op.image.resize2d(x, (14, 12), layout="NCHW", method="nearest_neighbor")),
    "layer_norm": lambda x, emit: emit(
        op.nn.layer_norm(x, constant(random(6)), constant(random(6)), axes=[-1])
    ),
    "topi": lambda x, emit: emit.__self__.emit_te(topi.nn.leaky_relu, x, 0.3),
    # Where axis 0 is not only the batch: evaluated sample by sample.
    "permute_dims of axis 0": lambda x, emit: emit(
        op.reshape(emit(op.permute_dims(x, (1, 0, 2, 3))), (1, 4, 7, 6))
    ),
    "softmax of axis 0": lambda x, emit: emit(op.nn.softmax(x, axis=0)),
    "mean of everything": lambda x, emit: emit(op.multiply(x, emit(op.mean(x)))),
    "broadcast of a lower rank": lambda x, emit: emit(op.add(x, emit(op.mean(x, axis=[2, 1])))),
    "concat with a constant": lambda x, emit: emit(op.concat([x, constant(random(*SHAPE))], axis=1)),
}


def compiled(mod: tvm.IRModule):
    lowered = relax.transform.LegalizeOps()(mod)
    return relax.VirtualMachine(tvm.compile(lowered, tvm.target.Target("llvm")), tvm.cpu())["main"]


def images(count: int, shape=SHAPE) -> torch.Tensor:
    return torch.randn(count, *shape[1:], generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_tvm_sample_by_sample(case):
    mod = module(CASES[case], SHAPE)
    run, x = compiled(mod), images(3)
    expected = [torch.from_numpy(run(tvm.runtime.tensor(sample.numpy())).numpy()) for sample in x.split(1)]
    got = TorchReference(mod).run(x)["result"]
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_every_rule_is_tested():
    used = set()

    def collect(expr):
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op):
            used.add(expr.op.name)

    for body in CASES.values():
        relax.analysis.post_order_visit(module(body, SHAPE)["main"], collect)
    assert set(RULES) <= used


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_wanted_tensors_are_those_of_single_samples(family, channels_last):
    backbone = import_model(FAMILIES[family](), torch.zeros(IMAGE_SHAPE))
    names = [cut.tensor for cut in find_cuts(backbone.module)]
    x = images(3, IMAGE_SHAPE)
    batch = TorchReference(backbone.module, channels_last=channels_last).run(x, names)
    single = TorchReference(backbone.module)
    assert list(batch) == [*names, "result"]
    for row in range(3):
        for name, value in single.run(x[row : row + 1], names).items():
            torch.testing.assert_close(batch[name][row : row + 1], value, rtol=1e-4, atol=1e-5)


def test_a_result_may_be_a_tuple():
    def body(x, emit):
        active = emit(op.nn.relu(x))
        return relax.Tuple([active, emit(op.mean(active, axis=[2, 3]))])

    x = images(2)
    first, second = TorchReference(module(body, SHAPE)).run(x)["result"]
    torch.testing.assert_close(first, x.relu())
    torch.testing.assert_close(second, x.relu().mean((2, 3)))


def test_features_can_be_trained_on():
    mod = module(unary(op.nn.relu), SHAPE)
    features = TorchReference(mod).run(images(2))["result"]
    weight = torch.ones(4, requires_grad=True)
    (features.mean((2, 3)) * weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.mean((2, 3)).sum(0))


def test_unknown_name_and_other_shape():
    reference = TorchReference(module(unary(op.nn.relu), SHAPE))
    with pytest.raises(ModelError, match="no tensor 'absent'"):
        reference.run(images(1), ["absent"])
    with pytest.raises(ModelError, match=r"\[1, 5, 7, 6\].*\[B, 4, 7, 6\]"):
        reference.run(torch.from_numpy(np.zeros((1, 5, 7, 6), np.float32)))
