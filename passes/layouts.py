"""NCHW[v]c: what it is, and how weights and feature maps get into it and out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax
from tvm.relax import op
from tvm.tirx import IndexMap

Emit = Callable[[relax.Expr], relax.Var]


@dataclass(frozen=True, slots=True)
class Layout:
    """Feature maps [N, ceil(C / block), H, W, block] of C = ``channels`` channels.

    Where ``block`` does not divide ``channels``, the last lanes are padding: they hold finite numbers that
    nothing may read.
    """

    channels: int
    block: int

    @property
    def blocks(self) -> int:
        return math.ceil(self.channels / self.block)

    @property
    def lanes(self) -> int:
        """Channels with the padding."""
        return self.blocks * self.block

    @property
    def padded(self) -> bool:
        return self.lanes != self.channels

    @property
    def name(self) -> str:
        return f"NCHW{self.block}c"


def shape_of(expr: relax.Expr) -> list[int]:
    return [int(extent) for extent in expr.ty.shape]


def pack(array: np.ndarray, layout: Layout) -> np.ndarray:
    """[N, C, H, W] to [N, C / block, H, W, block]; padding is 0. C of 1, which broadcasts, stays 1."""
    batch, channels, height, width = array.shape
    if channels == 1 != layout.channels:
        return array[..., None]
    filled = _filled(array, 1, layout.lanes)
    split = filled.reshape(batch, layout.blocks, layout.block, height, width)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2))


def pack_weight(weight: np.ndarray, outputs: Layout, inputs: int) -> np.ndarray:
    """[O, I, kh, kw] to [O / block, ``inputs``, kh, kw, block], in the order that a convolution reads it.

    ``inputs`` is I, or more where the data has padding; padding is 0, and so makes it harmless.
    """
    filled = _filled(_filled(weight, 0, outputs.lanes), 1, inputs)
    split = filled.reshape(outputs.blocks, outputs.block, *filled.shape[1:])
    return np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1))


def merge_groups(weight: np.ndarray, groups: int, merged: int) -> np.ndarray:
    """The weights of ``groups / merged`` groups that compute the same: ``merged`` old ones on the diagonal.

    weight: [O, I, kh, kw] of ``groups`` groups. Returns [O, merged * I, kh, kw], 0 off the diagonal.
    """
    outputs, inputs, *window = weight.shape
    out = np.zeros((groups // merged, merged, outputs // groups, merged, inputs, *window), weight.dtype)
    split = weight.reshape(groups // merged, merged, outputs // groups, inputs, *window)
    for position in range(merged):
        out[:, position, :, position] = split[:, position]
    return out.reshape(outputs, merged * inputs, *window)


def block(emit: Emit, data: relax.Expr, layout: Layout) -> relax.Var:
    """A feature map [N, C, H, W] in ``layout``; C of 1, which broadcasts, becomes [N, 1, H, W, 1]."""
    batch, channels, height, width = shape_of(data)
    if channels == 1 != layout.channels:
        return emit(op.reshape(data, (batch, 1, height, width, 1)))
    if layout.padded:
        data = emit(op.nn.pad(data, [0, 0, 0, layout.lanes - channels, 0, 0, 0, 0]))
    if height * width == 1:
        return emit(op.reshape(data, (batch, layout.blocks, 1, 1, layout.block)))
    v = layout.block
    into = IndexMap.from_func(lambda n, c, h, w: (n, c // v, h, w, c % v), index_dtype="int32")
    return emit(op.layout_transform(data, into))


def unblock(emit: Emit, data: relax.Expr, layout: Layout) -> relax.Var:
    """A feature map in ``layout`` as [N, C, H, W]."""
    batch, _, height, width, v = shape_of(data)
    if height * width == 1:
        plain = emit(op.reshape(data, (batch, layout.lanes, 1, 1)))
    else:
        out = IndexMap.from_func(lambda n, c, h, w, lane: (n, c * v + lane, h, w), index_dtype="int32")
        plain = emit(op.layout_transform(data, out))
    if not layout.padded:
        return plain
    return emit(op.strided_slice(plain, axes=[1], begin=[0], end=[layout.channels]))


def _filled(array: np.ndarray, axis: int, extent: int) -> np.ndarray:
    widths = [(0, extent - size if index == axis else 0) for index, size in enumerate(array.shape)]
    return np.pad(array, widths)
