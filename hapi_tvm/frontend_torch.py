"""A torch module into Relax, by way of ``torch.export``."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
import tvm
from tvm.relax.frontend.torch import from_exported_program

from hapi_tvm.errors import ModelError


def from_torch(module: torch.nn.Module, example_input: object) -> tvm.IRModule:
    """``main(input)`` with the weights as constants, in eval mode; ``module`` stays as it was."""
    example = _checked_example(example_input)
    _check_weights(module)
    still = copy.deepcopy(module).cpu().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = _exported(still, example)
        try:
            return from_exported_program(program, keep_params_as_input=False)
        except Exception as error:  # from AssertionError to tvm.error.InternalError
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise ModelError(
                f"TVM {tvm.__version__} cannot import the exported module{_where(error, program)}: {reason}; "
                "write that operator with others"
            ) from error


def _checked_example(example_input: object) -> torch.Tensor:
    if example_input is None:
        raise ModelError("a torch module needs example_input, float32 [1, C, H, W], to be traced")
    if isinstance(example_input, tuple | list):
        raise ModelError(
            f"example_input holds {len(example_input)} inputs; a classifier has one, a tensor [1, C, H, W]"
        )
    example = example_input if torch.is_tensor(example_input) else torch.from_numpy(np.asarray(example_input))
    if example.ndim != 4 or example.shape[0] != 1:
        raise ModelError(f"example_input has shape {list(example.shape)}; expected one image, [1, C, H, W]")
    return example.detach().cpu().float()


def _check_weights(module: torch.nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            index = torch.nonzero(~torch.isfinite(tensor))[0].tolist()
            raise ModelError(
                f"weight {name!r} holds {tensor[tuple(index)].item()} at {index}; "
                "every weight must be finite: train or load the model again"
            )


def _exported(module: torch.nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
    try:
        program = torch.export.export(module, (example,))
    except Exception as error:  # torch.export raises whatever the traced code does
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"torch.export cannot trace {type(module).__name__} at input {list(example.shape)}: {reason}; "
            "forward must take one tensor and have no branches that depend on data"
        ) from error
    outputs = [spec.arg.name for spec in program.graph_signature.output_specs]
    if len(outputs) != 1:
        raise ModelError(
            f"{type(module).__name__} returns {len(outputs)} outputs ({', '.join(map(str, outputs))}); "
            "a classifier returns its logits alone"
        )
    return program


def _where(error: BaseException, program: torch.export.ExportedProgram) -> str:
    """The first node whose operator the frontend names as unsupported (TVM 0.27 names operators only)."""
    for node in program.graph.nodes:
        function = getattr(node.target, "__name__", "")
        if node.op == "call_function" and f"'{function}'" in str(error):
            return f", node {node.name!r} (operator {function})"
    return ""
