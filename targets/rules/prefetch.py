"""Weights fetched before a kernel needs them.

A kernel of a whole network finds its weights in the third cache or in memory: other kernels have run since
it read them last. The processor does not run ahead by itself. With 16 multiply-adds waiting for each line of
weights, its queue of waiting instructions is full after some ten lines, and its own prefetchers stop at
every page. On one AVX-512 core (TVM 0.27.0.post1) VGG-16 took 45 % longer without these instructions. Ours.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tvm
from tvm import tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize
from tvm.sym.analyzer import Analyzer
from tvm.tirx import For, ForKind, IterVar

__all__ = ["PrefetchWeights", "spread"]

LINE_FLOATS = 16
# Weights in flight: at 30 GB/s from the third cache, what arrives in a quarter of a microsecond.
AHEAD_FLOATS = 2048
# Fetching a line twice costs little; below this share of useful prefetches they move to an outer loop.
MAX_WASTE = 1.5
# Arguments of llvm.prefetch: for reading, into the second cache, data.
READ, SECOND_CACHE, DATA = 0, 2, 1


@tirx.transform.prim_func_pass(opt_level=0)
class PrefetchWeights:
    """Add prefetch instructions to the reductions of scheduled kernels. The last step before they are compiled.

    Weights are what a multiply-add reads in whole vectors straight from a parameter. Where each iteration
    of the outer loops reads other weights, a line is fetched as the line before it in the same stream is
    used, ``AHEAD_FLOATS`` behind. Where neighbouring iterations read the same weights again, they share the
    work of fetching the next ones. Weights that are read once and for all iterations are left alone, and so
    is every loop of another form. Not to be applied twice.
    """

    def transform_function(
        self, func: tirx.PrimFunc, _mod: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tirx.PrimFunc:
        return func.with_body(_rewrite(func.body, (), func.params))


def spread(lines: int, reuse: int, extents: Sequence[int]) -> tuple[int, int]:
    """Where to fetch ``lines`` lines during ``reuse`` runs of a nest of loops: a depth, and lines an iteration.

    extents: of the nest's loops, the outermost first. The deepest loop that wastes few prefetches is best,
    since prefetches in a row wait for each other. The lines of all iterations are at least ``lines``.
    """
    depth, count = 0, -(-lines // (reuse * extents[0]))
    for deeper in range(1, len(extents)):
        iterations = reuse * math.prod(extents[: deeper + 1])
        fetched = -(-lines // iterations)
        if fetched * iterations <= MAX_WASTE * lines:
            depth, count = deeper, fetched
    return depth, count


def _rewrite(stmt: tirx.Stmt, outer: tuple[For, ...], params: Sequence[tirx.Var]) -> tirx.Stmt:
    """``stmt`` with prefetches in its reductions. outer: the loops around it, the outermost first."""
    if isinstance(stmt, tirx.SeqStmt):
        return tirx.SeqStmt([_rewrite(part, outer, params) for part in stmt.seq])
    if isinstance(stmt, SBlockRealize):
        return SBlockRealize(stmt.iter_values, stmt.predicate, _rewritten_block(stmt.block, outer, params))
    if not isinstance(stmt, For):
        return stmt
    nest = _find_nest(stmt, outer)
    if nest is None:
        return _with_body(stmt, _rewrite(stmt.body, (*outer, stmt), params))
    return _insert(nest, [fetches for stream in _streams(nest, params) for fetches in _fetches(nest, stream)])


def _rewritten_block(block: SBlock, outer: tuple[For, ...], params: Sequence[tirx.Var]) -> SBlock:
    return SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        _rewrite(block.body, outer, params),
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )


def _with_body(loop: For, body: tirx.Stmt) -> For:
    return For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations, loop.step)


@dataclass(frozen=True, slots=True)
class _Nest:
    """A multiply-add in its loops: outer ones, serial reductions, and the tile, which is unrolled and one vector."""

    outer: tuple[For, ...]
    reductions: tuple[For, ...]
    tile: tuple[For, ...]
    block: SBlock
    values: Mapping[tirx.Var, tirx.PrimExpr]

    @property
    def inner(self) -> tuple[For, ...]:
        return self.reductions + self.tile


def _find_nest(loop: For, outer: tuple[For, ...]) -> _Nest | None:
    """The nest that begins with ``loop``, if that is its first reduction; all extents are numbers."""
    loops, body = [], loop
    while isinstance(body, For):
        loops.append(body)
        body = body.body
    if not isinstance(body, SBlockRealize) or loops[-1].kind != ForKind.VECTORIZED:
        return None
    if not all(isinstance(one.extent, tirx.IntImm) and _is_zero(one.min) for one in [*outer, *loops]):
        return None
    block = body.block
    values = {var.var: value for var, value in zip(block.iter_vars, body.iter_values, strict=True)}
    summed = [values[var.var] for var in block.iter_vars if var.iter_type == IterVar.CommReduce]
    if loop.kind != ForKind.SERIAL or not any(_depends(value, loop) for value in summed):
        return None
    serial = tuple(itertools.takewhile(lambda one: one.kind == ForKind.SERIAL, loops))
    return _Nest(outer, serial, tuple(loops[len(serial) :]), block, values)


def _is_zero(value: tirx.PrimExpr) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) == 0


def _depends(value: tirx.PrimExpr, loop: For) -> bool:
    return any(var.same_as(loop.loop_var) for var in tirx.analysis.undefined_vars(value, []))


@dataclass(frozen=True, slots=True)
class _Stream:
    """A parameter that a nest reads. offset: of what it reads, in elements, by the nest's loops."""

    buffer: tirx.Var
    offset: tirx.PrimExpr

    def at(self, numbers: Mapping[For, int]) -> int:
        """The offset where the given loops have these values, and all others are at 0."""
        zeros = dict.fromkeys(tirx.analysis.undefined_vars(self.offset, []), 0)
        return int(_substitute(self.offset, zeros | {loop.loop_var: number for loop, number in numbers.items()}))

    def stride(self, loop: For) -> int:
        return self.at({loop: 1}) - self.at({}) if int(loop.extent) > 1 else 0

    def touch(self, offset: tirx.PrimExpr) -> tirx.Stmt:
        """A prefetch of the line that holds this element; it may lie behind the buffer's end."""
        zeros = [tirx.const(0, offset.ty.dtype)] * (len(self.buffer.ty.shape) - 1)
        address = tirx.address_of(tirx.BufferLoad(self.buffer, [*zeros, Analyzer().simplify(offset)]))
        hints = [tirx.const(hint, "int32") for hint in (READ, SECOND_CACHE, DATA)]
        return tirx.Evaluate(tirx.call_llvm_intrin("void", "llvm.prefetch", address, *hints))


def _substitute(value: tirx.PrimExpr, values: Mapping[tirx.Var, tirx.PrimExpr | int]) -> tirx.PrimExpr:
    given = [tirx.const(number, var.ty.dtype) if isinstance(number, int) else number for var, number in values.items()]
    (found,) = tirx.IndexMap(list(values), [value], None).map_indices(given)
    return Analyzer().simplify(found)


def _streams(nest: _Nest, params: Sequence[tirx.Var]) -> list[_Stream]:
    """The parameters that are read in whole vectors; none where nothing else is read, as in a pooling."""
    written = [region.source for region in nest.block.writes]
    reads = [region for region in nest.block.reads if not any(region.source.same_as(one) for one in written)]
    if len(reads) < 2:
        return []
    streams = []
    for region in reads:
        if any(region.source.same_as(param) for param in params):
            stream = _Stream(region.source, _substitute(_offset(region), nest.values))
            if stream.stride(nest.tile[-1]) == 1:
                streams.append(stream)
    return streams


def _offset(region: tvm.ir.TensorRegion) -> tirx.PrimExpr:
    """Of the first element of a region, in elements."""
    return functools.reduce(
        lambda offset, axis: offset * axis[1] + axis[0].min,
        zip(region.region, region.source.ty.shape, strict=True),
        0,
    )


def _fetches(nest: _Nest, stream: _Stream) -> list[tuple[int, tirx.Stmt]]:
    """Prefetches of a stream, each with the depth of the reduction loop that it belongs in."""
    reuse = _reuse(nest, stream)
    if reuse is None:
        return []
    return _line_by_line(nest, stream) if reuse == 1 else _next_weights(nest, stream, reuse)


def _reuse(nest: _Nest, stream: _Stream) -> int | None:
    """How many runs of the nest in a row read the same weights; None if all of several do."""
    start, runs = stream.at({}), 1
    for loop in reversed(nest.outer):
        if _depends(stream.offset, loop):
            for number in range(1, int(loop.extent)):
                if stream.at({loop: number}) != start:
                    return runs * number
        runs *= int(loop.extent)
    return None if runs > 1 else 1


def _iteration(loops: Sequence[For], index: int) -> dict[For, int]:
    """The values of ``loops`` in the iteration ``index`` of all."""
    numbers = {}
    for loop in reversed(loops):
        index, numbers[loop] = divmod(index, int(loop.extent))
    return numbers


def _line_by_line(nest: _Nest, stream: _Stream) -> list[tuple[int, tirx.Stmt]]:
    """What the innermost reduction reads some iterations later."""
    unrolled = [loop for loop in nest.tile[:-1] if stream.stride(loop)]
    places = itertools.product(*(range(int(loop.extent)) for loop in unrolled))
    vectors = [stream.at(dict(zip(unrolled, place, strict=True))) - stream.at({}) for place in places]
    lines = sorted({vector // LINE_FLOATS for vector in vectors})
    last = nest.reductions[-1]
    ahead = -(-AHEAD_FLOATS // (LINE_FLOATS * len(lines)))
    start = _at_start_of(stream, nest.tile) + ahead * stream.stride(last)
    depth = len(nest.reductions) - 1
    return [(depth, stream.touch(start + LINE_FLOATS * line)) for line in lines]


def _next_weights(nest: _Nest, stream: _Stream, reuse: int) -> list[tuple[int, tirx.Stmt]]:
    """The weights behind those of this nest, where they lie in one piece; ``reuse`` runs share them."""
    strides = [(stream.stride(loop), int(loop.extent)) for loop in nest.inner]
    size = 1 + sum(stride * (extent - 1) for stride, extent in strides)
    whole = size == math.prod(extent for stride, extent in strides if stride)
    if not whole or stream.at(_iteration(nest.outer, reuse)) - stream.at({}) != size:
        return []
    extents = [int(loop.extent) for loop in nest.reductions]
    depth, count = spread(-(-size // LINE_FLOATS), reuse, extents)
    step = tirx.floormod(_index(nest.outer, 0), reuse)
    step = _index(nest.reductions[: depth + 1], step)
    start = _at_start_of(stream, nest.inner) + size + step * (count * LINE_FLOATS)
    return [(depth, stream.touch(start + LINE_FLOATS * line)) for line in range(count)]


def _index(loops: Sequence[For], start: tirx.PrimExpr | int) -> tirx.PrimExpr:
    """The number of the current iteration of ``loops``, inside iteration ``start`` of a loop around them."""
    for loop in loops:
        start = start * loop.extent + loop.loop_var
    return start


def _at_start_of(stream: _Stream, loops: Sequence[For]) -> tirx.PrimExpr:
    """The offset where ``loops`` begin."""
    return _substitute(stream.offset, {loop.loop_var: 0 for loop in loops})


def _insert(nest: _Nest, fetches: Sequence[tuple[int, tirx.Stmt]]) -> For:
    """The nest with each prefetch at the beginning of the body of its loop."""
    body = nest.reductions[-1].body
    for depth, loop in reversed(list(enumerate(nest.reductions))):
        here = [fetch for place, fetch in fetches if place == depth]
        body = _with_body(loop, tirx.SeqStmt([*here, body]) if here else body)
    return body
