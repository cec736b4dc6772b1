"""Import a trained classifier, from ONNX or torch, as one clean Relax function."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm import relax

from hapi_tvm.errors import ModelError
from hapi_tvm.hashing import digest
from hapi_tvm.passes.canonical_backbone import CanonicalBackbone
from hapi_tvm.passes.dataflow import array, bindings, operator
from hapi_tvm.passes.fold_batch_norm import FoldBatchNorm
from hapi_tvm.passes.fold_padding import FoldPadding
from hapi_tvm.passes.fold_weights import FoldWeights
from hapi_tvm.passes.merge_clips import MergeClips


@dataclass(frozen=True, slots=True)
class Backbone:
    """A trained classifier inside TVM.

    module: one Relax function ``main(x)`` from float32 [1, C, H, W] to logits, float32 [1, classes]: a single
    dataflow block of high-level operators in NCHW, weights as constants, batch norms folded, unique names.
    hash: over the printed structure and the weights; the same in every process.
    """

    name: str
    module: tvm.IRModule
    classes: int
    input_shape: tuple[int, int, int, int]
    hash: str


def import_model(source: object, example_input: object = None, *, name: str | None = None) -> Backbone:
    """Import an image classifier of batch 1 with static shapes.

    source: path of an ``.onnx`` file, an ``onnx.ModelProto``, or a ``torch.nn.Module``.
    example_input: float32 [1, C, H, W], tensor or array; torch modules only. Raises ModelError.
    A softmax at the end is removed: the result are logits.
    """
    if isinstance(source, str | pathlib.Path):
        from hapi_tvm.frontend_onnx import from_onnx_file

        return _backbone(from_onnx_file(pathlib.Path(source)), name or pathlib.Path(source).stem)
    if _is_a(source, "torch.nn", "Module"):
        from hapi_tvm.frontend_torch import from_torch

        return _backbone(from_torch(source, example_input), name or type(source).__name__)
    if _is_a(source, "onnx", "ModelProto"):
        from hapi_tvm.frontend_onnx import from_onnx_proto

        return _backbone(from_onnx_proto(source), name or source.graph.name or "model")
    raise ModelError(
        f"cannot import a {type(source).__name__}; give the path of an .onnx file, an onnx.ModelProto, "
        "or a torch.nn.Module with example_input"
    )


def _is_a(source: object, package: str, kind: str) -> bool:
    """Whether ``source`` is an instance, without importing the package: it is loaded if that can be so."""
    module = sys.modules.get(package)
    return module is not None and isinstance(source, getattr(module, kind))


def _backbone(imported: tvm.IRModule, name: str) -> Backbone:
    module = _in_normal_form(imported)
    function = module["main"]
    input_shape = _checked_shape("input", function.params[0].ty, lambda s: len(s) == 4, "[1, C, H, W]")
    classes = _checked_shape("result", function.ret_ty, lambda s: len(s) == 2 and s[1] > 1, "[1, classes]")[1]
    return Backbone(name, module, classes, input_shape, _content_hash(module))


def _in_normal_form(imported: tvm.IRModule) -> tvm.IRModule:
    for binding in bindings(imported["main"]):
        for ty in getattr(binding.var.ty, "fields", (binding.var.ty,)):
            if isinstance(ty, relax.TensorType) and _static_shape(ty) is None:
                raise ModelError(
                    f"{binding.var.name} ({operator(binding.value) or 'a value'}) has a dynamic shape, {ty}; "
                    "export the model with static shapes"
                )
    return tvm.transform.Sequential(
        [
            # Weights become plain constants, so that the passes below see them.
            FoldWeights(),
            FoldBatchNorm(),
            FoldPadding(),
            # What the frontends lower or split too early.
            MergeClips(),
            relax.transform.DecomposeOpsForInference("main"),
            # Names, signature, dead code.
            CanonicalBackbone(),
        ]
    )(imported)


def _checked_shape(
    what: str, ty: tvm.ir.Type, fits: Callable[[tuple[int, ...]], bool], expected: str
) -> tuple[int, ...]:
    shape = _static_shape(ty) if isinstance(ty, relax.TensorType) else None
    if shape is None:
        raise ModelError(f"the model's {what} is {ty}; expected one static float32 tensor {expected}")
    if str(ty.dtype) != "float32":
        raise ModelError(f"the model's {what} is {ty.dtype} {list(shape)}; export the model in float32")
    if not fits(shape):
        raise ModelError(
            f"the model's {what} has shape {list(shape)}; expected {expected} of an image classifier: "
            "export the model with that shape"
        )
    if shape[0] != 1:
        raise ModelError(f"the model's {what} has batch {shape[0]}; export it with batch 1, {expected}")
    return shape


def _static_shape(ty: relax.TensorType) -> tuple[int, ...] | None:
    extents = None if ty.shape is None else list(ty.shape)
    if extents is None or not all(isinstance(extent, tvm.tirx.IntImm) for extent in extents):
        return None
    return tuple(int(extent) for extent in extents)


def _content_hash(module: tvm.IRModule) -> str:
    constants = []

    def collect(expr: relax.Expr) -> None:
        if (value := array(expr)) is not None:
            constants.append(value)

    relax.analysis.post_order_visit(module["main"], collect)
    return digest(module.script(show_meta=False), constants)
