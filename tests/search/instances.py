"""Small random tables to search; the large ones, shaped like those of a real network, are the package's own."""

from __future__ import annotations

import numpy as np

from hapi_tvm.search.synthetic import Tables, network, tables

__all__ = ["network", "random_exits", "small", "tables"]


def small(seed: int, *, samples: int, candidates: int, kinds: int = 1, levels: int = 6) -> Tables:
    """Few levels of everything, so that ties are common: in confidence, accuracy and latency."""
    random = np.random.default_rng(seed)
    options = candidates * kinds
    confidence = random.integers(0, levels + 1, (samples, options)) / np.float32(levels)
    skill = np.sort(random.uniform(0.3, 1.0, options + 1))
    return tables(
        confidence,
        random.random((samples, options + 1)) < skill,
        random.integers(0, 4, candidates + 1) * 0.5,
        random.integers(0, 3, options) * 0.25,
        tuple(f"kind_{k}" for k in range(kinds)),
    )


def random_exits(seed: int, calibration, most: int) -> list[tuple[int, float]]:
    """Up to ``most`` exits; thresholds that some sample has, or 0, or 1."""
    random = np.random.default_rng(seed)
    by_candidate: dict[int, list[int]] = {}
    for index, option in enumerate(calibration.options):
        by_candidate.setdefault(option.candidate, []).append(index)
    size = int(random.integers(0, min(most, len(by_candidate)) + 1))
    chosen = sorted(random.choice(len(by_candidate), size=size, replace=False).tolist())
    exits = []
    for candidate in chosen:
        option = int(random.choice(by_candidate[candidate]))
        exits.append((option, float(random.choice([0.0, 1.0, *calibration.confidence[:, option]]))))
    return [(option, float(np.float32(threshold))) for option, threshold in exits]
