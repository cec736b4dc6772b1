"""Hold a compiled backbone to the reference before it is exported, and find the kernel that is wrong."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np

from hapi_tvm.errors import BuildError
from hapi_tvm.kernel_check import differences
from hapi_tvm.kernel_database import Scheduled
from hapi_tvm.network import LoweredNetwork
from hapi_tvm.runtime import read_manifest
from hapi_tvm.targets import Target
from hapi_tvm.targets.place import Place

__all__ = ["TOLERANCE", "check_library", "relative_error"]

# Of the logits, relative to the largest: float32 sums in another order, and Winograd's rounding, over the
# depth of a network. What scripts/bench_backbone.py allows.
TOLERANCE = 1e-3
TIMEOUT_S = 120.0
# Logits that differ by less than this say nothing: the softmax of an untrained head is flat.
_LEAST_SCALE = 1e-3
# Below it a probability is as good as none, and its logarithm would measure the exponential's underflow.
_LEAST_PROBABILITY = 1e-30


def check_library(
    library: pathlib.Path,
    image: np.ndarray,
    logits: np.ndarray,
    network: LoweredNetwork,
    schedules: Mapping[str, Scheduled],
    target: Target,
) -> None:
    """Raise BuildError unless the library's answer to ``image`` [1, C, H, W] is that of ``logits`` [1, K].

    It runs in another process, so that a kernel that crashes or hangs is an error too. The message names the kernels
    that compute something else than their unscheduled form.
    """
    exits = len(read_manifest(library)["exits"])
    (outcome,) = target.reach.attempt(probabilities, [(str(library), image, exits)], TIMEOUT_S)
    if outcome.error is not None:
        found = f"ends on one random image: {outcome.error}"
    else:
        error = relative_error(outcome.value, logits)
        if error <= TOLERANCE:
            return
        found = f"is off by {error:.2e} of the largest logit on one random image; {TOLERANCE:.0e} is allowed"
    raise BuildError(f"{library.name} for {target.name} {found}. {_blame(network, schedules, target)}")


def probabilities(place: Place, library: str, image: np.ndarray, exits: int) -> np.ndarray:
    """What the backbone's end answers, [1, K]."""
    never = [place.tensor(np.full(exits, np.inf, np.float32))] if exits else []
    machine = place.machine(library)
    machine.run_us([place.tensor(image), *never])
    return machine.answer()[0]


def relative_error(found: np.ndarray, logits: np.ndarray) -> float:
    """Largest difference of the logits behind ``found`` probabilities [1, K], relative to the largest
    centred logit; NaN stays."""
    expected = _centred(np.log(np.maximum(_softmax(logits), _LEAST_PROBABILITY)))
    difference = np.abs(_centred(np.log(np.maximum(found, _LEAST_PROBABILITY))) - expected).max()
    return float(difference / max(np.abs(expected).max(), _LEAST_SCALE))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return powers / powers.sum()


def _centred(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) - values.mean()


def _blame(network: LoweredNetwork, schedules: Mapping[str, Scheduled], target: Target) -> str:
    """Which kernels differ from their unscheduled form, and what to do."""
    kernels = [kernel for key, kernel in network.kernels.items() if key in schedules]
    found = differences([(kernel.func, schedules[kernel.key].func) for kernel in kernels], target)
    wrong = [
        f"kernel {kernel.name} ({kernel.key}, schedule {schedules[kernel.key].key}): {reason}"
        for kernel, reason in zip(kernels, found, strict=True)
        if reason is not None
    ]
    if wrong:
        return f"{'; '.join(wrong)}. Tune with more trials or another database, and report the kernel"
    return (
        f"Each of the {len(kernels)} kernels alone computes what it does unscheduled, so a pass or the memory "
        "plan is wrong: report the model"
    )
