"""Where a network can be cut at one tensor: the places for exits. Analysis only; nothing is changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import tvm
from tvm import relax

from hapi_tvm.errors import NoLegalCut
from hapi_tvm.passes.dataflow import bindings, input_dependent, operator
from hapi_tvm.passes.flops import op_flops
from hapi_tvm.passes.graph import used_vars

NEGLIGIBLE_SHARE = 0.005

_WITHOUT_EXITS = "compile the plain backbone with max_exits=0 in the SLA (--max-exits 0)"

ELEMENTWISE = frozenset(
    f"relax.{name}"
    for name in (
        "abs add clip divide erf exp log maximum minimum multiply negative power rsqrt sigmoid sqrt square "
        "subtract tanh where nn.gelu nn.gelu_tanh nn.leakyrelu nn.prelu nn.relu nn.selu nn.silu nn.softplus"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Cut:
    """A variable of ``main`` through which every path from the input to the result passes.

    shape: [1, C, H, W]. flops_before: operations (2 per multiply-add) up to and including it.
    """

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    flops_before: int
    flops_share: float


def find_cuts(module: tvm.IRModule, spacing: float = 0.0) -> tuple[Cut, ...]:
    """The single-tensor cuts of ``main`` in network order; expects what ``import_model`` returns.

    A tensor is cut-able where nothing else computed so far is still needed: the dominators of the result.
    Branches of residual and concatenated blocks are excluded by that definition. Of the dominators, a cut is
    a feature map [1, C, H, W] with H * W > 1 (the input is none, nor is anything behind the global pooling)
    that ends its chain of elementwise operators: a cut before the bias or the activation would split a
    kernel. Of two cuts less than 0.5 % of all operations apart, the later one stays.

    spacing: least share of all operations between two cuts, in [0, 1]; 0 keeps all.
    Raises NoLegalCut where no tensor qualifies.
    """
    function = module["main"]
    dependent = input_dependent(function)
    computed = [binding for binding in bindings(function) if binding.var in dependent]
    dominators = _dominators(function, computed)
    if not dominators:
        raise NoLegalCut(
            f"no tensor between input and result separates the network: all {len(computed)} operators lie "
            f"inside branches that join at the end. There is no place for an exit; {_WITHOUT_EXITS}"
        )
    maps = [
        position
        for position, following in pairwise([*dominators, len(computed)])
        if _is_feature_map(computed[position].var.ty)
        and not _elementwise(computed[position + 1 : following + 1])
    ]
    if not maps:
        raise NoLegalCut(
            f"{len(dominators)} tensors separate the network, but none is a feature map [1, C, H, W] with "
            f"H * W > 1 to put an exit on; {_WITHOUT_EXITS}"
        )
    before, total = {}, 0
    for index, binding in enumerate(computed):
        total += op_flops(binding.value)
        before[index] = total
    kept = _keep_later(maps, before, max(NEGLIGIBLE_SHARE, spacing) * total)
    return tuple(_cut(computed[index].var, before[index], total) for index in kept)


def _dominators(function: relax.Function, computed: list[relax.VarBinding]) -> list[int]:
    """Positions in ``computed`` of the variables that every path from input to result passes, but the last.

    One sweep in topological order with a count of the values that are still to be read. After the binding of
    v, v alone is open if and only if v dominates the result: an open u before v has a reader w behind v, and
    since nothing is dead, the path input, u, w, result avoids v; conversely a path that avoids v has an edge
    across v's position, whose tail is open. Linear in the number of operands.
    """
    reads = Counter(var for binding in computed for var in set(used_vars(binding.value)))
    open_values = sum(1 for parameter in function.params if reads[parameter])
    found = []
    for position, binding in enumerate(computed):
        for var in set(used_vars(binding.value)):
            if var in reads:
                reads[var] -= 1
                open_values -= reads[var] == 0
        if reads[binding.var]:
            open_values += 1
            if open_values == 1:
                found.append(position)
    return found


def _elementwise(chain: list[relax.VarBinding]) -> bool:
    return bool(chain) and all(operator(binding.value) in ELEMENTWISE for binding in chain)


def _is_feature_map(ty: relax.Type) -> bool:
    if not isinstance(ty, relax.TensorType) or ty.ndim != 4:
        return False
    batch, _, height, width = (int(extent) for extent in ty.shape)
    return batch == 1 and height * width > 1


def _keep_later(positions: list[int], before: dict[int, int], gap: float) -> list[int]:
    """Thin from the end, so that of two close ones the later stays."""
    kept: list[int] = []
    for position in reversed(positions):
        if not kept or before[kept[-1]] - before[position] >= gap:
            kept.append(position)
    return kept[::-1]


def _cut(var: relax.Var, flops_before: int, total: int) -> Cut:
    shape = tuple(int(extent) for extent in var.ty.shape)
    return Cut(str(var.name), shape, str(var.ty.dtype), flops_before, flops_before / total)
