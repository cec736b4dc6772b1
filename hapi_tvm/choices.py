"""Choices of algorithms on record: a line a decision in ``choices.jsonl``, in the target's folder."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hapi_tvm import jsonl
from hapi_tvm.algorithms import DIRECT
from hapi_tvm.passes.winograd import TILES, ConvolutionShape

__all__ = ["Choice", "latest", "store"]

FILE = "choices.jsonl"


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen for one network with one set of schedules.

    network: of the direct lowering. schedules: of all kernels that were compared. in_place_us: of each shape,
    by tile and ``DIRECT``, summed over its places; empty where no tile was worth a try. tiles: of the shapes
    that Winograd computes.
    """

    network: str
    schedules: str
    in_place_us: Mapping[ConvolutionShape, Mapping[int, float]]
    tiles: Mapping[ConvolutionShape, int]

    @property
    def trials(self) -> dict[ConvolutionShape, frozenset[int]]:
        return {shape: frozenset(row) - {DIRECT} for shape, row in self.in_place_us.items()}


def latest(folder: pathlib.Path, network: str) -> Choice | None:
    """The last choice for ``network``; broken lines of the file are set aside."""
    with jsonl.locked(folder):
        lines = jsonl.read_repaired(folder / FILE, lambda value: _parsed(value) is not None)
    choices = [_parsed(line) for line in lines if line["network"] == network]
    return choices[-1] if choices else None


def store(folder: pathlib.Path, choice: Choice) -> None:
    shapes = [
        {
            "data": list(shape.data),
            "weight": list(shape.weight),
            "in_place_us": [[tile, us] for tile, us in row.items()],
            "tile": choice.tiles.get(shape, DIRECT),
        }
        for shape, row in choice.in_place_us.items()
    ]
    line = {"network": choice.network, "schedules": choice.schedules, "shapes": shapes}
    with jsonl.locked(folder):
        jsonl.append(folder / FILE, line)


def _parsed(value: Any) -> Choice | None:
    """None for what ``store`` cannot have written."""
    try:
        rows = [(_shape(line), _times(line), line["tile"]) for line in value["shapes"]]
        hashes = value["network"], value["schedules"]
        valid = all(isinstance(text, str) for text in hashes) and all(
            (not row or DIRECT in row) and (tile == DIRECT or tile in row) for _, row, tile in rows
        )
    except (TypeError, KeyError, ValueError):
        return None
    tiles = {shape: tile for shape, _, tile in rows if tile != DIRECT}
    return Choice(*hashes, {shape: row for shape, row, _ in rows}, tiles) if valid else None


def _shape(line: dict) -> ConvolutionShape:
    data, weight = line["data"], line["weight"]
    if not (len(data) == len(weight) == 5 and all(type(extent) is int for extent in [*data, *weight])):
        raise ValueError("a shape has five extents")
    return ConvolutionShape(tuple(data), tuple(weight))


def _times(line: dict) -> dict[int, float]:
    times_us = {tile: us for tile, us in line["in_place_us"]}
    if not all(tile in (DIRECT, *TILES) and type(us) is float and math.isfinite(us) for tile, us in times_us.items()):
        raise ValueError("times belong to tiles, and are finite")
    return times_us
