"""Memory for a function whose blocks lie inside each other, as the router's ``main``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import tvm
from tvm import relax

from hapi_tvm.passes.dataflow import operator
from hapi_tvm.passes.graph import used_vars

ALLOC_TENSOR = "relax.builtin.alloc_tensor"


@tvm.transform.module_pass(opt_level=0, name="PlanMemory")
class PlanMemory:
    """Give the tensors of functions with branches a few storages, allocated once at the start of a call.

    TVM's own planner (0.27) plans block by block, and leaves out what another block reads: behind each exit it would
    allocate anew. Here bindings are numbered in the order of the text, an ``If``'s branches one after the other. Any
    path through the function is a part of that order, so two tensors whose spans there do not meet can share a storage.
    Left alone, for TVM's planner: functions without ``If``; tensors that leave the function, whose shape is
    not known, or that lie elsewhere than in the main memory of the first device.

    Runs behind CallTIRRewrite.
    """

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        planned = {
            var: _planned(function) if isinstance(function, relax.Function) else function
            for var, function in mod.functions_items()
        }
        return relax.transform.Normalize()(
            tvm.IRModule(planned, attrs=mod.attrs, global_infos=mod.global_infos)
        )


@dataclass(slots=True)
class _Tensor:
    """size_bytes: None where it is not ours to place. Spans from ``first`` to ``last``, numbers of bindings."""

    size_bytes: int | None
    first: int
    last: int
    storage: int | None = None


@dataclass(slots=True)
class _Spans:
    """By variable: the allocated tensors that it may hold."""

    held: dict[relax.Var, list[_Tensor]] = field(default_factory=dict)
    allocated: dict[relax.Var, _Tensor] = field(default_factory=dict)
    count: int = 0
    branches: bool = False

    def read(self, sequence: relax.SeqExpr) -> list[_Tensor]:
        """Number the bindings; what the sequence's value holds."""
        for block in sequence.blocks:
            for binding in block.bindings:
                self.count += 1
                self.held[binding.var] = self._value(binding)
        return self._touched([sequence.body])

    def _value(self, binding: relax.VarBinding) -> list[_Tensor]:
        value = binding.value
        if isinstance(value, relax.If):
            self.branches = True
            self._touched([value.cond])
            return self.read(value.true_branch) + self.read(value.false_branch)
        if operator(value) == ALLOC_TENSOR:
            tensor = _Tensor(_size_bytes(value), self.count, self.count)
            self.allocated[binding.var] = tensor
            return [tensor]
        # Whatever takes a tensor, a reshape say, may return it. A kernel returns nothing, which nobody reads.
        return self._touched(used_vars(value))

    def _touched(self, expressions: list[relax.Expr]) -> list[_Tensor]:
        tensors = [tensor for expression in expressions for tensor in self.held.get(expression, [])]
        for tensor in tensors:
            tensor.last = self.count
        return tensors


def _planned(function: relax.Function) -> relax.Function:
    spans = _Spans()
    for tensor in spans.read(function.body):
        tensor.size_bytes = None  # it leaves the function
    if not spans.branches:
        return function
    sizes_bytes = _place(list(spans.allocated.values()))
    storages = [relax.Var(f"storage_{index}", relax.ObjectType()) for index in range(len(sizes_bytes))]
    block = relax.BindingBlock(
        [relax.VarBinding(var, _storage(size)) for var, size in zip(storages, sizes_bytes, strict=True)]
    )
    body = _rewritten(function.body, spans.allocated, storages)
    return relax.Function(
        function.params,
        relax.SeqExpr([block, *body.blocks], body.body),
        function.ret_ty,
        function.is_pure,
        function.attrs,
    )


def _place(tensors: list[_Tensor]) -> list[int]:
    """Choose a storage for each tensor; the sizes of the storages.

    In order of allocation: the smallest free storage that is large enough, else the largest free one, which grows, else
    a new one.
    """
    sizes_bytes: list[int] = []
    free_from: list[int] = []
    for tensor in tensors:
        if tensor.size_bytes is None:
            continue
        free = [index for index, number in enumerate(free_from) if number < tensor.first]
        large = [index for index in free if sizes_bytes[index] >= tensor.size_bytes]
        if large:
            index = min(large, key=sizes_bytes.__getitem__)
        elif free:
            index = max(free, key=sizes_bytes.__getitem__)
        else:
            index = len(sizes_bytes)
            sizes_bytes.append(0)
            free_from.append(0)
        sizes_bytes[index] = max(sizes_bytes[index], tensor.size_bytes)
        free_from[index] = tensor.last
        tensor.storage = index
    return sizes_bytes


def _rewritten(
    sequence: relax.SeqExpr, allocated: dict[relax.Var, _Tensor], storages: list[relax.Var]
) -> relax.SeqExpr:
    def value(binding: relax.VarBinding) -> relax.Expr:
        old = binding.value
        if isinstance(old, relax.If):
            branches = (_rewritten(branch, allocated, storages) for branch in (old.true_branch, old.false_branch))
            return relax.If(old.cond, *branches)
        tensor = allocated.get(binding.var)
        if tensor is None or tensor.storage is None:
            return old
        shape, dtype = old.args[0], old.args[1]
        return relax.op.memory.alloc_tensor(storages[tensor.storage], 0, shape, dtype)

    blocks = [
        relax.BindingBlock([relax.VarBinding(binding.var, value(binding)) for binding in block.bindings])
        for block in sequence.blocks
    ]
    return relax.SeqExpr(blocks, sequence.body)


def _storage(size_bytes: int) -> relax.Call:
    return relax.op.memory.alloc_storage(relax.ShapeExpr([size_bytes]), 0, "global", "uint8")


def _size_bytes(call: relax.Call) -> int | None:
    shape, dtype, device, scope = call.args
    extents = [int(extent) for extent in shape.values if isinstance(extent, tvm.tirx.IntImm)]
    if len(extents) < len(shape.values) or int(device) != 0 or scope.value != "global":
        return None
    return math.prod(extents) * tvm.DataType(dtype.value).itemsize
