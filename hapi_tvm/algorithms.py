"""The ways to compute a network's convolutions, directly or by Winograd, and the choice among them.

A convolution shape is computed one way wherever it occurs. All lowerings of a network have the same chains
but for the algorithm, so a place in the chain is the same convolution, with the same operators fused behind.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import tvm
from tvm import s_tir

from hapi_tvm.kernels import Kernel, workload
from hapi_tvm.network import LoweredNetwork, expected_reach, read_network
from hapi_tvm.passes.pipeline import lower_pieces
from hapi_tvm.passes.winograd import TILES, ConvolutionShape, convolution_shapes
from hapi_tvm.records import ExitGraph

__all__ = ["DIRECT", "Algorithms", "Place", "Tiles", "Trials", "cheapest", "drop_slow"]

DIRECT = 0  # in the place of a Winograd tile
Tiles = Mapping[ConvolutionShape, int]  # the tile of each shape that Winograd computes
Trials = Mapping[ConvolutionShape, frozenset[int]]  # the tiles worth a try; the direct sum always is
TimesUs = Mapping[ConvolutionShape, Mapping[int, float]]  # by tile and DIRECT


@dataclass(frozen=True, slots=True)
class Place:
    """A convolution in the backbone's chain of kernels. reach: the expected share of samples that get there."""

    index: int
    shape: ConvolutionShape
    reach: float


class Algorithms:
    """A cut network, lowered in any mixture of algorithms; each mixture once.

    pieces: what ``passes.pipeline.cut`` returns. dump_dir: where to write the IR after each pass, a folder for
    each mixture.
    """

    def __init__(
        self,
        pieces: tvm.IRModule,
        graph: ExitGraph,
        target: tvm.target.Target,
        dump_dir: pathlib.Path | None = None,
    ):
        self._pieces = pieces
        self._graph = graph
        self._target = target
        self._dump_dir = dump_dir
        self._networks: dict[frozenset, LoweredNetwork] = {}
        self.shapes = convolution_shapes(pieces)

    def network(self, tiles: Tiles) -> LoweredNetwork:
        key = frozenset(tiles.items())
        if key not in self._networks:
            dump_dir = None if self._dump_dir is None else self._dump_dir / f"lowering_{len(self._networks):02d}"
            lowered = lower_pieces(self._pieces, self._target, tiles, dump_dir)
            self._networks[key] = read_network(lowered, self._graph)
        return self._networks[key]

    @property
    def direct(self) -> LoweredNetwork:
        return self.network({})

    def variants(self, trials: Trials) -> dict[int, LoweredNetwork]:
        """By tile, the network where each shape is computed so if that is among its ``trials``; direct first."""
        variants = {DIRECT: self.direct}
        for tile in TILES:
            tiles = {shape: tile for shape, tried in trials.items() if tile in tried}
            if tiles:
                variants[tile] = self.network(tiles)
        return variants

    def places(self, variants: Mapping[int, LoweredNetwork]) -> list[Place]:
        """Where the variants differ from the direct network. The branches count for nothing: few samples' few us."""
        reach = [
            share for share, chain in zip(expected_reach(self._graph), self.direct.segments, strict=True) for _ in chain
        ]
        chains = [backbone_chain(network) for network in variants.values()]
        shape_of = functools.cache(lambda key: _shape(self.direct.kernels[key]))
        return [
            Place(index, shape_of(keys[0]), reach[index])
            for index, keys in enumerate(zip(*chains, strict=True))
            if len(set(keys)) > 1
        ]


def backbone_chain(network: LoweredNetwork) -> list[str]:
    """Kernel keys of all segments in call order."""
    return [key for chain in network.segments for key in chain]


def kernels_of(variants: Mapping[int, LoweredNetwork], places: Sequence[Place]) -> list[Kernel]:
    """The distinct kernels of all variants; a Winograd kernel has the weight of the direct one in its place."""
    direct = variants[DIRECT]
    kernels = dict(direct.kernels)
    direct_chain = backbone_chain(direct)
    for network in variants.values():
        chain = backbone_chain(network)
        for place in places:
            key = chain[place.index]
            if key not in kernels:
                weight = direct.kernels[direct_chain[place.index]].weight
                kernels[key] = replace(network.kernels[key], weight=weight)
    return list(kernels.values())


def sum_by_shape(
    variants: Mapping[int, LoweredNetwork], places: Sequence[Place], times_us: Mapping[int, Sequence[float]]
) -> dict[ConvolutionShape, dict[int, float]]:
    """Expected time of each shape by tile, over all its places, weighted by reach.

    times_us: by tile, of every kernel in the variant's chain; NaN or infinity for one that does not run.
    A tile that the shape was not lowered with is left out.
    """
    chains = {tile: backbone_chain(network) for tile, network in variants.items()}
    sums: dict[ConvolutionShape, dict[int, float]] = {}
    for place in places:
        row = sums.setdefault(place.shape, {})
        for tile, chain in chains.items():
            if tile == DIRECT or chain[place.index] != chains[DIRECT][place.index]:
                row[tile] = row.get(tile, 0.0) + place.reach * times_us[tile][place.index]
    return sums


def drop_slow(times_us: TimesUs, limit: float) -> dict[ConvolutionShape, frozenset[int]]:
    """The tiles that take at most ``limit`` times as long as the direct sum; NaN and infinity do not."""
    return {
        shape: frozenset(tile for tile, us in row.items() if tile != DIRECT and us <= limit * row[DIRECT])
        for shape, row in times_us.items()
    }


def cheapest(times_us: TimesUs, margin: float) -> dict[ConvolutionShape, int]:
    """The fastest tile of each shape that beats the direct sum by more than the share ``margin``.

    Shapes that are best summed directly are left out.
    """
    chosen = {}
    for shape, row in times_us.items():
        faster = {tile: us for tile, us in row.items() if tile != DIRECT and us < (1 - margin) * row[DIRECT]}
        if faster:
            chosen[shape] = min(faster, key=faster.__getitem__)
    return chosen


def _shape(direct: Kernel) -> ConvolutionShape:
    """Of a direct kernel: the extents of what its convolution reads, padding included."""
    schedule = s_tir.Schedule(workload(direct.func))
    data, weight = (region.source.shape for region in schedule.get(schedule.get_sblock("conv2d_blocked")).reads)
    return ConvolutionShape(tuple(map(int, data)), tuple(map(int, weight)))
