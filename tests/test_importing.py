"""Import: the six families from torch and from ONNX, the normal form, and every bad input of the table."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import tvm
from onnx import TensorProto, helper
from torch import nn
from tvm import relax

from hapi_tvm.errors import ModelError
from hapi_tvm.importing import import_model
from hapi_tvm.passes.dataflow import bindings, input_dependent, operator
from hapi_tvm.reference import TorchReference
from tests.families import CLASSES, FAMILIES, IMAGE_SHAPE

TOLERANCE = 1e-4


def images(count: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *IMAGE_SHAPE[1:], generator=torch.Generator().manual_seed(seed))


def to_onnx(model: nn.Module, example: torch.Tensor | None = None) -> onnx.ModelProto:
    """Batch norms stay batch norms in the file."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            model,
            (images() if example is None else example,),
            buffer,
            dynamo=False,
            do_constant_folding=False,
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    return onnx.load_model_from_string(buffer.getvalue())


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def from_torch():
    models = {family: build() for family, build in FAMILIES.items()}
    return {family: (model, import_model(model, images())) for family, model in models.items()}


@pytest.fixture(scope="module")
def from_onnx():
    protos = {family: to_onnx(build()) for family, build in FAMILIES.items()}
    return {family: (proto, import_model(proto)) for family, proto in protos.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_import_agrees_with_torch(from_torch, family):
    model, backbone = from_torch[family]
    x = images(3)
    with torch.no_grad():
        expected = model(x)
    got = TorchReference(backbone.module).run(x)["result"]
    assert relative_error(got.numpy(), expected.numpy()) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_import_agrees_with_onnx_runtime(from_onnx, family):
    proto, backbone = from_onnx[family]
    assert "BatchNormalization" in {node.op_type for node in proto.graph.node}
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    x = images()
    (expected,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    got = TorchReference(backbone.module).run(x)["result"]
    assert relative_error(got.numpy(), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["resnet", "mobilenet_v2"])
def test_compiled_import_agrees_with_torch(from_torch, family):
    model, backbone = from_torch[family]
    lowered = relax.transform.LegalizeOps()(backbone.module)
    machine = relax.VirtualMachine(tvm.compile(lowered, tvm.target.Target("llvm")), tvm.cpu())
    x = images()
    with torch.no_grad():
        expected = model(x).numpy()
    assert relative_error(machine["main"](tvm.runtime.tensor(x.numpy())).numpy(), expected) < TOLERANCE


@pytest.mark.parametrize("source", ["from_torch", "from_onnx"])
@pytest.mark.parametrize("family", FAMILIES)
def test_normal_form(request, source, family):
    _, backbone = request.getfixturevalue(source)[family]
    function = backbone.module["main"]
    assert [name.name_hint for name in backbone.module.get_global_vars()] == ["main"]
    assert [type(block) for block in function.body.blocks] == [relax.DataflowBlock]
    assert [param.name for param in function.params] == ["x"]
    tensor = relax.TensorType(IMAGE_SHAPE, "float32")
    tvm.ir.assert_structural_equal(function.params[0].ty, tensor)
    tvm.ir.assert_structural_equal(function.ret_ty, relax.TensorType((1, CLASSES), "float32"))
    bound = list(bindings(function))
    names = [binding.var.name for binding in bound]
    assert len(names) == len(set(names))
    assert {binding.var for binding in bound} <= input_dependent(function)
    assert all(operator(binding.value) for binding in bound)
    assert not {"relax.nn.batch_norm", "relax.call_tir"} & {operator(binding.value) for binding in bound}
    assert (backbone.classes, backbone.input_shape) == (CLASSES, IMAGE_SHAPE)


@pytest.mark.parametrize("end", [nn.Softmax(dim=1), nn.LogSoftmax(dim=1)])
@pytest.mark.parametrize("through_onnx", [False, True])
def test_softmax_at_the_end_is_stripped(end, through_onnx):
    model = FAMILIES["vgg"]()
    with_end = nn.Sequential(model, end).eval()
    backbone = import_model(to_onnx(with_end)) if through_onnx else import_model(with_end, images())
    with torch.no_grad():
        logits = model(images())
    got = TorchReference(backbone.module).run(images())["result"]
    assert relative_error(got.numpy(), logits.numpy()) < TOLERANCE


def test_training_mode_of_the_module_is_kept():
    model = FAMILIES["vgg"]().train()
    backbone = import_model(model, images())
    assert all(part.training for part in model.modules())
    with torch.no_grad():
        expected = model.eval()(images())
    got = TorchReference(backbone.module).run(images())["result"]
    assert relative_error(got.numpy(), expected.numpy()) < TOLERANCE


HASH_IN_A_FRESH_PROCESS = """
import sys
from hapi_tvm.importing import import_model
print(import_model(sys.argv[1]).hash)
"""


def test_hash_is_the_same_in_another_process_and_follows_the_weights(tmp_path, from_onnx):
    proto, backbone = from_onnx["vgg"]
    path = tmp_path / "vgg.onnx"
    onnx.save(proto, path)
    command = [sys.executable, "-c", HASH_IN_A_FRESH_PROCESS, str(path)]
    fresh = subprocess.run(command, capture_output=True, text=True, check=True)
    assert fresh.stdout.split()[-1] == backbone.hash
    other = import_model(FAMILIES["vgg"](seed=1), images())
    assert other.hash != import_model(FAMILIES["vgg"](seed=0), images()).hash


def test_name_is_the_file_the_class_or_what_was_asked(tmp_path, from_onnx):
    proto, _ = from_onnx["vgg"]
    onnx.save(proto, tmp_path / "my_net.onnx")
    assert import_model(str(tmp_path / "my_net.onnx")).name == "my_net"
    assert import_model(tmp_path / "my_net.onnx", name="other").name == "other"
    assert import_model(FAMILIES["vgg"](), images()).name == "Sequential"


def graph_of(nodes, inputs, outputs, initializers=()) -> onnx.ModelProto:
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in part]
        for part in (inputs, outputs)
    ]
    graph = helper.make_graph(nodes, "net", *values, initializer=list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def tiny(shape=(1, 3, 8, 8), weight: np.ndarray | None = None) -> onnx.ModelProto:
    """GlobalAveragePool, Flatten, Gemm."""
    weight = np.ones((4, 3), np.float32) if weight is None else weight
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "weight"], ["logits"], name="dense", transB=1),
    ]
    initializers = [onnx.numpy_helper.from_array(weight, "weight")]
    return graph_of(nodes, [("image", shape)], [("logits", [shape[0], len(weight)])], initializers)


def refused(*fragments: str, source, example=None) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(source, example)
    message = str(caught.value)
    assert all(fragment in message for fragment in fragments), message


def test_tiny_graph_is_good():
    assert import_model(tiny()).classes == 4


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" * 40, b"this is text, not a model\n" * 10])
def test_file_that_is_no_onnx_model(tmp_path, content):
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    refused("net.onnx", "is no ONNX model", source=path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file(tmp_path, from_onnx, share):
    data = from_onnx["vgg"][0].SerializeToString()
    path = tmp_path / "net.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    refused("net.onnx", "is no ONNX model, or is cut short", source=path)


def test_missing_file_and_directory(tmp_path):
    refused("absent.onnx", "does not exist", source=tmp_path / "absent.onnx")
    refused("is a directory", source=tmp_path)


def test_something_else():
    refused("cannot import a dict", "onnx.ModelProto", source={"weights": 1})


def test_operator_unknown_to_tvm_is_named_with_its_node():
    model = tiny()
    model.graph.node[0].op_type = "FancyPool"
    refused("'pool'", "operator FancyPool", source=model)


def test_operator_that_fails_to_convert_is_named_with_its_node():
    model = tiny()
    model.graph.node.insert(
        0, helper.make_node("Resize", ["image", "", "scales"], ["bigger"], name="grow", mode="trilinear")
    )
    model.graph.node[1].input[0] = "bigger"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 2, 2), np.float32), "scales"))
    refused("'grow'", "operator Resize", source=model)


def test_control_flow_is_named():
    model = tiny()
    model.graph.node.insert(0, helper.make_node("Loop", ["image"], ["image2"], name="again"))
    refused("'again'", "operator Loop", "control flow", source=model)


@pytest.mark.parametrize(
    ("shape", "axis", "advice"),
    [(("N", 3, 8, 8), 0, "--dim_param N --dim_value 1 "), ((1, 3, "height", 8), 2, "--dim_param height")],
)
def test_dynamic_shape_names_input_and_axis(shape, axis, advice):
    model = tiny()
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, extent in zip(dims, shape, strict=True):
        if isinstance(extent, str):
            dim.dim_param = extent
    refused("'image'", f"axis {axis} is", "dynamic shape", advice, source=model)


def test_two_inputs_are_listed():
    model = tiny()
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, (1, 3)))
    refused("2 inputs (image, mask)", source=model)


def test_weights_listed_as_inputs_are_no_inputs():
    model = tiny()
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, (4, 3)))
    assert import_model(model).classes == 4


def test_two_outputs_are_listed():
    model = tiny()
    model.graph.output.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, (1, 3)))
    refused("2 outputs (logits, flat)", source=model)


@pytest.mark.parametrize(("value", "said"), [(np.nan, "nan"), (np.inf, "inf")])
def test_weight_that_is_not_finite_is_named(value, said):
    weight = np.ones((4, 3), np.float32)
    weight[2, 1] = value
    refused("'weight'", said, "[2, 1]", source=tiny(weight=weight))


def test_batch_other_than_one():
    refused("batch 2", "batch 1", source=tiny(shape=(2, 3, 8, 8)))


def test_input_that_is_no_image():
    nodes = [helper.make_node("Gemm", ["features", "weight"], ["logits"], name="dense", transB=1)]
    initializers = [onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "weight")]
    model = graph_of(nodes, [("features", (1, 3))], [("logits", (1, 4))], initializers)
    refused("input has shape [1, 3]", "[1, C, H, W]", source=model)


def test_result_that_is_no_row_of_logits():
    nodes = [helper.make_node("Relu", ["image"], ["map"], name="relu")]
    model = graph_of(nodes, [("image", (1, 3, 8, 8))], [("map", (1, 3, 8, 8))])
    refused("result has shape [1, 3, 8, 8]", "[1, classes]", source=model)


def test_torch_module_without_example():
    refused("needs example_input", source=FAMILIES["vgg"]())


def test_torch_example_of_another_batch_or_rank():
    refused("[2, 3, 32, 32]", "[1, C, H, W]", source=FAMILIES["vgg"](), example=images(2))
    refused("[3, 32, 32]", "[1, C, H, W]", source=FAMILIES["vgg"](), example=images()[0].numpy())
    refused("2 inputs", source=FAMILIES["vgg"](), example=(images(), images()))


def test_torch_example_that_does_not_fit():
    refused("cannot trace", "[1, 4, 32, 32]", source=FAMILIES["vgg"](), example=torch.zeros(1, 4, 32, 32))


def test_torch_weight_that_is_not_finite_is_named():
    model = FAMILIES["vgg"]()
    with torch.no_grad():
        model[0].bias[3] = float("nan")
    refused("'0.bias'", "nan", "[3]", source=model, example=images())


class TwoHeads(nn.Module):
    def forward(self, x):
        pooled = x.mean((2, 3))
        return pooled, -pooled


class DataDependent(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


class UnknownToTvm(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x).mean((2, 3))


def test_torch_module_with_two_outputs():
    refused("TwoHeads returns 2 outputs", source=TwoHeads().eval(), example=images())


def test_torch_module_with_control_flow():
    refused("cannot trace DataDependent", source=DataDependent().eval(), example=images())


def test_torch_operator_unknown_to_tvm_is_named():
    refused("special_bessel_j0", "node", source=UnknownToTvm().eval(), example=images())
