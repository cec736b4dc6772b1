"""The lowered network as the tuner and the search see it: chains of distinct kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import tvm
from tvm import relax
from tvm.s_tir.analysis import estimate_tir_flops

from hapi_tvm.kernels import Kernel, kernel_key
from hapi_tvm.passes.cut_segments import exit_name, segment_name
from hapi_tvm.passes.graph import dataflow_bindings
from hapi_tvm.records import ExitGraph

Chain = tuple[str, ...]  # kernel keys in call order


@dataclass(frozen=True)
class LoweredNetwork:
    """Every segment and every branch as kernels, before a design is chosen.

    module: what ``passes.pipeline.lower_everything`` returns. kernels: distinct ones, by key, in the
    order of their first call. segments: E + 1 chains. branches: one chain for each option.
    """

    module: tvm.IRModule
    kernels: dict[str, Kernel]
    segments: tuple[Chain, ...]
    branches: tuple[Chain, ...]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[1, C, H, W]."""
        return tuple(int(extent) for extent in self.module[segment_name(0)].params[0].ty.shape)

    @property
    def backbone_names(self) -> list[str]:
        """The names in ``module`` of the backbone's kernels, in call order."""
        return [name for i in range(len(self.segments)) for name in called_kernels(self.module[segment_name(i)])]


def read_network(module: tvm.IRModule, graph: ExitGraph) -> LoweredNetwork:
    """The chains and distinct kernels of a lowered module, with tuning weights.

    A kernel's weight is the work it is expected to carry: its operations, times its calls, times the
    share of samples that get there. Before the search that share is a guess of ours: it falls linearly
    from 1 at the input to 1/2 at the end, and ``_EXPECTED_EXITS`` of the branches are placed in the end.
    """
    functions = {var.name_hint: function for var, function in module.functions_items()}
    key_of = functools.cache(lambda name: kernel_key(functions[name]))
    names: dict[str, str] = {}
    weights: dict[str, float] = {}

    def chain(function_name: str, reach: float) -> Chain:
        keys = []
        for name in called_kernels(functions[function_name]):
            key = key_of(name)
            names.setdefault(key, name)
            work = 1.0 + estimate_tir_flops(tvm.IRModule({"main": functions[name]}))
            weights[key] = weights.get(key, 0.0) + reach * work
            keys.append(key)
        return tuple(keys)

    segments = tuple(chain(segment_name(i), reach) for i, reach in enumerate(expected_reach(graph)))
    placed = min(1.0, _EXPECTED_EXITS / max(1, len(graph.options)))
    branches = tuple(chain(exit_name(option), placed) for option in graph.options)
    kernels = {key: Kernel(key, name, functions[name], weights[key]) for key, name in names.items()}
    return LoweredNetwork(module, kernels, segments, branches)


_EXPECTED_EXITS = 4


def expected_reach(graph: ExitGraph) -> tuple[float, ...]:
    """Of each segment, before the search: the share of samples that get there, as ``read_network`` guesses it."""
    return tuple(1.0 - share / 2 for share in (0.0, *(candidate.flops_share for candidate in graph.candidates)))


def called_kernels(function: relax.Function) -> list[str]:
    """Their names in call order."""
    call_tir = tvm.ir.Op.get("relax.call_tir")
    return [
        binding.value.args[0].name_hint
        for binding in dataflow_bindings(function)
        if isinstance(binding.value, relax.Call) and binding.value.op.same_as(call_tir)
    ]
