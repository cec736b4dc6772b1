"""A residual classifier with three candidate exits, small enough to compile in a second.

Also what it must compute: the oracle is plain torch and shares nothing with the passes but the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import tvm
from tvm import relax
from tvm.relax import op

from hapi_tvm.passes.attach_exits import AttachExits, BranchWeights
from hapi_tvm.passes.blocked_layout import BlockedLayout
from hapi_tvm.passes.cut_segments import CutSegments
from hapi_tvm.passes.drop_exits import DropExits
from hapi_tvm.passes.graph import dataflow_bindings
from hapi_tvm.passes.lower_segments import LowerSegments
from hapi_tvm.passes.pipeline import to_virtual_machine
from hapi_tvm.passes.route import Route
from hapi_tvm.records import Option
from tests.passes.graphs import constant, module

CLASSES = 5
IMAGE_SHAPE = (1, 3, 8, 8)
LANES = 8
TENSORS = ("stem", "block", "wide")
CHANNELS = (8, 8, 16)
OPTIONS = tuple(Option(candidate, kind) for candidate in range(3) for kind in ("conv", "linear"))
KEPT = (Option(0, "linear"), Option(2, "conv"))
HOST = tvm.target.Target("llvm")


def normal(*shape: int, seed: int) -> np.ndarray:
    """float32, scaled so that sums over all but the first axis keep the variance."""
    fan_in = max(1, int(np.prod(shape[1:])))
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


WEIGHTS = {
    "stem": normal(8, 3, 3, 3, seed=1),
    "first": normal(8, 8, 3, 3, seed=2),
    "second": normal(8, 8, 3, 3, seed=3),
    "wide": normal(16, 8, 3, 3, seed=4),
    "dense": 2 * normal(16, CLASSES, seed=5),
    "bias": normal(1, CLASSES, seed=6)[0],
}


def backbone() -> tvm.IRModule:
    """``main(x)``: a stem, a residual block, a wider convolution of stride 2, pooling, a dense layer."""

    def body(x, emit):
        def convolved(data: relax.Var, name: str, strides: int = 1) -> relax.Var:
            return emit(op.nn.conv2d(data, constant(WEIGHTS[name]), strides=strides, padding=1))

        stem = emit(op.nn.relu(convolved(x, "stem")), "stem")
        inner = emit(op.nn.relu(convolved(stem, "first")))
        block = emit(op.nn.relu(emit(op.add(convolved(inner, "second"), stem))), "block")
        wide = emit(op.nn.relu(convolved(block, "wide", strides=2)), "wide")
        flat = emit(op.reshape(emit(op.mean(wide, axis=[2, 3])), (1, 16)))
        return emit(op.add(emit(op.matmul(flat, constant(WEIGHTS["dense"]))), constant(WEIGHTS["bias"])))

    return module(body, IMAGE_SHAPE)


def random_branch(kind: str, channels: int, classes: int, seed: int) -> BranchWeights:
    """Small enough that confidences spread over (1 / classes, 1)."""
    own: dict[str, np.ndarray] = {}
    if kind == "conv":
        own["conv_weight"] = normal(8, channels, 3, 3, seed=seed)
        own["conv_bias"] = normal(1, 8, seed=seed + 50)[0] / 4
        channels = 8
    own["weight"] = normal(2 * channels, classes, seed=seed + 20) / 2
    own["bias"] = normal(1, classes, seed=seed + 40)[0] / 2
    return own


@functools.cache
def branch_weights() -> dict[Option, BranchWeights]:
    """Random, in the order of ``OPTIONS``."""
    return {
        option: random_branch(option.kind, CHANNELS[option.candidate], CLASSES, seed)
        for seed, option in enumerate(OPTIONS, start=100)
    }


def images(count: int, seed: int = 0) -> list[np.ndarray]:
    """float32 [1, 3, 8, 8] each."""
    random = np.random.default_rng(seed)
    return [2 * random.standard_normal(IMAGE_SHAPE, dtype=np.float32) for _ in range(count)]


def oracle_tensors(x: np.ndarray) -> dict[str, torch.Tensor]:
    """The candidates' tensors and, under "logits", the backbone's answer, computed by torch."""
    weights = {name: torch.from_numpy(value) for name, value in WEIGHTS.items()}
    stem = F.conv2d(torch.from_numpy(x), weights["stem"], padding=1).relu()
    inner = F.conv2d(stem, weights["first"], padding=1).relu()
    block = (F.conv2d(inner, weights["second"], padding=1) + stem).relu()
    wide = F.conv2d(block, weights["wide"], stride=2, padding=1).relu()
    logits = wide.mean((2, 3)) @ weights["dense"] + weights["bias"]
    return {"stem": stem, "block": block, "wide": wide, "logits": logits}


def oracle_branch(cut: torch.Tensor, weights: BranchWeights) -> torch.Tensor:
    """Logits [B, K] of one branch, computed by torch."""
    own = {name: torch.from_numpy(value) for name, value in weights.items()}
    if "conv_weight" in own:
        cut = F.conv2d(cut, own["conv_weight"], own["conv_bias"], stride=2, padding=1).relu()
    return torch.cat([cut.mean((2, 3)), cut.amax((2, 3))], dim=1) @ own["weight"] + own["bias"]


def oracle_answers(x: np.ndarray, options: Sequence[Option] = OPTIONS) -> list[tuple[np.ndarray, float]]:
    """Probabilities [1, K] and confidence of each option, the backbone's last."""
    tensors = oracle_tensors(x)
    logits = [
        oracle_branch(tensors[TENSORS[option.candidate]], branch_weights()[option]) for option in options
    ]
    found = [torch.softmax(row, dim=1).numpy() for row in [*logits, tensors["logits"]]]
    return [(probabilities, float(probabilities.max())) for probabilities in found]


# The stages of the pipeline, each made once. Sharing them is safe as long as no pass edits its input, which
# is what the tests of each pass show on a copy.


@functools.cache
def attached() -> tvm.IRModule:
    return AttachExits(TENSORS, branch_weights())(backbone())


@functools.cache
def blocked() -> tvm.IRModule:
    return BlockedLayout(LANES)(attached())


@functools.cache
def cut() -> tvm.IRModule:
    return CutSegments(len(TENSORS), OPTIONS)(blocked())


@functools.cache
def lowered() -> tvm.IRModule:
    with HOST:
        return LowerSegments()(cut())


@functools.cache
def dropped(kept: tuple[Option, ...] = KEPT) -> tvm.IRModule:
    return DropExits(kept)(lowered())


@functools.cache
def routed(kept: tuple[Option, ...] = KEPT) -> tvm.IRModule:
    return Route()(dropped(kept))


def copy_of(mod: tvm.IRModule) -> tvm.IRModule:
    """A deep copy: nothing is shared with ``mod``."""
    return tvm.ir.load_json(tvm.ir.save_json(mod))


def functions(mod: tvm.IRModule) -> dict[str, relax.Function]:
    """The Relax functions of a module by name."""
    return {var.name_hint: f for var, f in mod.functions_items() if isinstance(f, relax.Function)}


def kernels(function: relax.Function) -> list[str]:
    """Names of the kernels that a lowered function calls, in order."""
    calls = [binding.value for binding in dataflow_bindings(function) if isinstance(binding.value, relax.Call)]
    return [call.args[0].name_hint for call in calls if call.op.name == "relax.call_tir"]


def assert_leaves_its_input_alone(a_pass: tvm.transform.Pass, mod: tvm.IRModule) -> None:
    before = copy_of(mod)
    a_pass(mod)
    tvm.ir.assert_structural_equal(mod, before)
    assert mod.script() == before.script()


def assert_twice_equals_once(a_pass: tvm.transform.Pass, mod: tvm.IRModule) -> None:
    once = a_pass(mod)
    tvm.ir.assert_structural_equal(a_pass(once), once)


def machine(mod: tvm.IRModule) -> relax.VirtualMachine:
    """A lowered module, compiled for the host as a design is."""
    executable = tvm.compile(mod, HOST, relax_pipeline=to_virtual_machine())
    return relax.VirtualMachine(executable, tvm.cpu())


def call(function, *arrays: np.ndarray):
    """Call a compiled function with NumPy arrays; tensors come back as arrays, tuples as tuples."""
    return _to_numpy(function(*(tvm.runtime.tensor(array) for array in arrays)))


def _to_numpy(value):
    if isinstance(value, tvm.runtime.Tensor):
        return value.numpy()
    return tuple(_to_numpy(field) for field in value)
