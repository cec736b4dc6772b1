"""Choose how each convolution is computed, by measurement, and remember it.

1. ``worth_trying``: alone, untuned, which flatters Winograd (see ``turns``): what is clearly slower there is out.
2. The rest is tuned within the budget of all kernels.
3. ``choose``: in place, tuned; then the mixture as a whole against the direct network, for time and for numbers.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Mapping

import numpy as np

from hapi_tvm.algorithms import (
    Algorithms,
    Tiles,
    Trials,
    backbone_chain,
    cheapest,
    drop_slow,
    kernels_of,
    sum_by_shape,
)
from hapi_tvm.choices import Choice, latest, store
from hapi_tvm.hashing import digest
from hapi_tvm.kernel_database import Scheduled, target_folder
from hapi_tvm.kernels import Kernel
from hapi_tvm.measuring import try_to_measure
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.passes.winograd import TILES, ConvolutionShape
from hapi_tvm.targets import Target
from hapi_tvm.turns import kernels_in_turns, wholes_in_turns

__all__ = ["choose", "kernels_to_tune", "worth_trying"]

logger = logging.getLogger(__name__)

# Of the direct sum's time, alone and untuned: what tuning may still make up for.
PROMISING = 1.15
# In place; under it the difference is noise more often than not.
MARGIN = 0.03
# Of the logits, relative to the largest, between the direct network and the mixture.
LOGIT_TOLERANCE = 1e-4


def worth_trying(algorithms: Algorithms, target: Target, database_dir: pathlib.Path | str, *, measure: bool) -> Trials:
    """The tiles to tune for each shape: those on record for this network, else what a first measurement leaves.

    measure: False takes what is on record, or nothing. A kernel that does not build or run takes its tile out,
    and the log says why.
    """
    known = latest(target_folder(database_dir, target), _network_key(algorithms.direct))
    if known is not None:
        return known.trials
    if not measure:
        return {}
    variants = algorithms.variants({shape: frozenset(TILES) for shape in algorithms.shapes})
    places = algorithms.places(variants)
    chains = {tile: backbone_chain(network) for tile, network in variants.items()}
    compared = {
        chain[place.index]: variants[tile].kernels[chain[place.index]]
        for tile, chain in chains.items()
        for place in places
    }
    alone, failures = try_to_measure(list(compared.values()), target, database_dir)
    for key, reason in failures.items():
        logger.warning("kernel %s (%s) is out: %s", compared[key].name, key, reason)
    alone_us = {
        tile: [alone[key].median_us if key in alone else float("inf") for key in chain]
        for tile, chain in chains.items()
    }
    return drop_slow(sum_by_shape(variants, places, alone_us), PROMISING)


def kernels_to_tune(algorithms: Algorithms, trials: Trials) -> list[Kernel]:
    """The kernels of the direct network, and those of ``trials``."""
    variants = algorithms.variants(trials)
    return kernels_of(variants, algorithms.places(variants))


def choose(
    algorithms: Algorithms,
    trials: Trials,
    schedules: Mapping[str, Scheduled],
    target: Target,
    database_dir: pathlib.Path | str,
    *,
    measure: bool,
) -> Tiles:
    """The tiles to lower the network with; nothing where the direct sum is best everywhere.

    schedules: of ``kernels_to_tune``, by key. What is on record for this network with the same schedules is not
    measured again. measure: False takes that or nothing.
    """
    trials = _that_run(algorithms, trials, schedules)
    kernels = kernels_to_tune(algorithms, trials)
    schedules_key = digest({kernel.key: schedules[kernel.key].key for kernel in kernels})
    network_key = _network_key(algorithms.direct)
    folder = target_folder(database_dir, target)
    known = latest(folder, network_key)
    if known is not None and known.schedules == schedules_key:
        return known.tiles
    if not measure:
        return {}
    in_place_us = _in_place_us(algorithms, trials, schedules, target)
    tiles = cheapest(in_place_us, MARGIN)
    if tiles and not _holds(algorithms, tiles, schedules, target):
        tiles = {}
    store(folder, Choice(network_key, schedules_key, in_place_us, tiles))
    return tiles


def _that_run(algorithms: Algorithms, trials: Trials, schedules: Mapping[str, Scheduled]) -> Trials:
    """Without the tiles that no schedule is left for: such a kernel would take a thousand times as long."""
    variants = algorithms.variants(trials)
    places = algorithms.places(variants)
    unscheduled = {
        (place.shape, tile)
        for tile, chain in ((tile, backbone_chain(network)) for tile, network in variants.items())
        for place in places
        if schedules[chain[place.index]].origin == "plain"
    }
    return {
        shape: frozenset(tile for tile in tiles if (shape, tile) not in unscheduled) for shape, tiles in trials.items()
    }


def _in_place_us(
    algorithms: Algorithms, trials: Trials, schedules: Mapping[str, Scheduled], target: Target
) -> dict[ConvolutionShape, dict[int, float]]:
    """Of each shape, by tile and ``DIRECT``; empty for a shape without trials."""
    variants = algorithms.variants(trials)
    places = algorithms.places(variants)
    if not places:
        return {shape: {} for shape in trials}
    medians_us = kernels_in_turns(list(variants.values()), schedules, target)
    sums = sum_by_shape(variants, places, dict(zip(variants, medians_us, strict=True)))
    return {shape: sums.get(shape, {}) for shape in trials}


def _holds(algorithms: Algorithms, tiles: Tiles, schedules: Mapping[str, Scheduled], target: Target) -> bool:
    """Whether the mixture as a whole computes the same as the direct network, and faster."""
    mixed, direct = wholes_in_turns([algorithms.network(tiles), algorithms.direct], schedules, target)
    error = logit_error(mixed.probabilities, direct.probabilities)
    if not error <= LOGIT_TOLERANCE:
        logger.warning(
            "Winograd is out for %s: the logits differ from the direct network's by %.1e of the largest, %.0e is "
            "allowed",
            ", ".join(f"{shape.weight} F({tile})" for shape, tile in tiles.items()),
            error,
            LOGIT_TOLERANCE,
        )
        return False
    logger.debug("%.0f us with Winograd, %.0f us without", mixed.median_us, direct.median_us)
    return mixed.median_us < direct.median_us


def logit_error(found: np.ndarray, reference: np.ndarray) -> float:
    """Largest difference of the centred logits behind two vectors of probabilities, over the reference's largest.

    Not the probabilities: a softmax hides what it saturates. NaN stays.
    """
    one, other = (_logits(probabilities) for probabilities in (found, reference))
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(np.float32).tiny))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    log = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny))
    return log - log.mean()


def _network_key(direct: LoweredNetwork) -> str:
    return digest("network", direct.segments)
