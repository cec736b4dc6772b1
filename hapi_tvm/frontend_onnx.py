"""ONNX into Relax: check the model where its own names are still known, then convert."""

from __future__ import annotations

import contextlib
import io
import pathlib
import traceback
import warnings

import numpy as np
import onnx
import tvm
from google.protobuf.message import DecodeError
from tvm.relax.frontend.onnx import from_onnx

from hapi_tvm.errors import ModelError

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})


def from_onnx_file(path: pathlib.Path) -> tvm.IRModule:
    """The converted model of an ``.onnx`` file; raises ModelError for anything else."""
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        missing = error.filename or path
        raise ModelError(f"{missing} does not exist; give the path of an .onnx file") from error
    except IsADirectoryError as error:
        raise ModelError(f"{path} is a directory; give the path of an .onnx file") from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path} is no ONNX model, or is cut short: {error}; export it again") from error
    if model.ir_version == 0 or not model.graph.node:
        raise ModelError(
            f"{path} ({path.stat().st_size} bytes) is no ONNX model: it holds no operators; export it again"
        )
    return from_onnx_proto(model)


def from_onnx_proto(model: onnx.ModelProto) -> tvm.IRModule:
    """``main(input)`` with the weights as constants; raises ModelError and names the offending part."""
    _check_signature(model.graph)
    _check_weights(model.graph)
    _check_static(model.graph)
    for node in model.graph.node:
        if node.op_type in CONTROL_FLOW:
            raise ModelError(f"{_label(node)} is control flow; export the model without branches or loops")
    return _convert(model)


def _check_signature(graph: onnx.GraphProto) -> None:
    for what, names in (("input", _input_names(graph)), ("output", [output.name for output in graph.output])):
        if len(names) != 1:
            raise ModelError(
                f"the model has {len(names)} {what}s ({', '.join(names)}); a classifier has one: "
                f"export it with the one {what} alone"
            )


def _input_names(graph: onnx.GraphProto) -> list[str]:
    weights = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in weights]


def _check_static(graph: onnx.GraphProto) -> None:
    value = next(value for value in graph.input if value.name in _input_names(graph))
    for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
        if not dimension.HasField("dim_value") or dimension.dim_value < 1:
            symbol = dimension.dim_param or "unknown"
            advice = "batch 1" if axis == 0 else "the size of the images"
            raise ModelError(
                f"input {value.name!r} has a dynamic shape: axis {axis} is {symbol!r}; export the model with "
                f"{advice} there, or set it: python -m onnxruntime.tools.make_dynamic_shape_fixed "
                f"--dim_param {symbol} --dim_value {1 if axis == 0 else 'SIZE'} IN.onnx OUT.onnx"
            )


def _check_weights(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ModelError(
                f"weight {tensor.name!r} holds {values[index]} at {list(index)}; "
                "every weight must be finite: train or export the model again"
            )


def _convert(model: onnx.ModelProto) -> tvm.IRModule:
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said):
            warnings.simplefilter("ignore")
            return from_onnx(model, keep_params_in_input=False)
    except Exception as error:  # every kind, from AssertionError to tvm.error.InternalError
        node = _failing_node(error, model.graph)
        what = "the model" if node is None else _label(node)
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ModelError(
            f"TVM {tvm.__version__} cannot import {what}: {reason}; "
            "replace the operator and export the model again"
        ) from error


def _failing_node(error: BaseException, graph: onnx.GraphProto) -> onnx.NodeProto | None:
    """The node that the frontend gave up on.

    It says so in no exception (TVM 0.27): an unknown operator is named by type only, and otherwise the node
    is a local variable of ``_construct_nodes``. Drop this when the exception carries the node.
    """
    for frame, _line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "_construct_nodes" and "node" in frame.f_locals:
            return frame.f_locals["node"]
    if isinstance(error, tvm.error.OpNotImplemented):
        unknown = {name.strip() for name in str(error).rpartition(":")[2].split(",")}
        return next((node for node in graph.node if node.op_type in unknown), None)
    return None


def _label(node: onnx.NodeProto) -> str:
    return f"node {node.name or '/'.join(node.output)!r} (operator {node.op_type})"
