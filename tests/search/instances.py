"""Tables to search: small random ones, and large ones shaped like those of a real network."""

from __future__ import annotations

import numpy as np

from hapi_tvm.records import CalibrationTable, Candidate, ExitGraph, KernelLatency, LatencyTable, Option

Tables = tuple[CalibrationTable, LatencyTable, ExitGraph]


def tables(confidence, right, segment_us, branch_us, kinds: tuple[str, ...] = ("linear",)) -> Tables:
    """confidence: [N, C]. right: bool [N, C + 1]. segment_us: [E + 1]. branch_us: [C], C = E * kinds."""
    confidence = np.asarray(confidence, dtype=np.float32)
    right = np.asarray(right, dtype=bool)
    candidates = len(segment_us) - 1
    options = tuple(Option(i, kind) for i in range(candidates) for kind in kinds)
    calibration = CalibrationTable(
        split="calibration",
        options=options,
        confidence=np.column_stack([confidence, np.ones(len(right), dtype=np.float32)]),
        prediction=np.where(right, 1, 0).astype(np.int32),
        label=np.ones(len(right), dtype=np.int32),
    )
    named = [(f"segment_{i}", us) for i, us in enumerate(segment_us)]
    named += [(f"branch_{i}", us) for i, us in enumerate(branch_us)]
    latency = LatencyTable(
        target="llvm",
        threads=1,
        tvm_version="0",
        kernels=tuple(KernelLatency(name, name, float(us), 0.1 * float(us)) for name, us in named),
        segments=tuple((f"segment_{i}",) for i in range(candidates + 1)),
        options=options,
        branches=tuple((f"branch_{i}",) for i in range(len(branch_us))),
    )
    total_us = float(sum(segment_us)) or 1.0
    graph = ExitGraph(
        model_hash="0",
        classes=2,
        backbone_flops=1000,
        candidates=tuple(
            Candidate(
                f"exit_{i:02}", f"tensor_{i}", (1, 1, 1, 1), "float32", i, sum(segment_us[: i + 1]) / total_us
            )
            for i in range(candidates)
        ),
        kinds=kinds,
    )
    return calibration, latency, graph


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


def network(seed: int, *, samples: int, candidates: int, kinds: int = 2) -> Tables:
    """Exits that grow better with depth and err on the same hard samples; the second kind costs more."""
    random = np.random.default_rng(seed)
    difficulty = random.gumbel(size=(samples, 1))
    depth = np.repeat(np.linspace(0.05, 1.0, candidates), kinds)
    kind = np.tile(np.arange(kinds), candidates)
    strength = 4.5 * depth**0.6 + 0.4 * kind
    margin = strength - 1.2 * difficulty + random.normal(size=(samples, candidates * kinds))
    backbone_margin = 5.0 - 1.2 * difficulty + random.normal(size=(samples, 1))
    right = random.random((samples, candidates * kinds + 1)) < 1 / (
        1 + np.exp(-np.hstack([margin, backbone_margin]))
    )
    noise = 0.7 * random.normal(size=margin.shape)
    confidence = 0.1 + 0.9 / (1 + np.exp(-(margin + noise)))
    segment_us = random.uniform(20, 40, candidates + 1)
    branch_us = np.where(kind == 0, 3.0, 14.0) * random.uniform(0.8, 1.2, candidates * kinds)
    return tables(confidence, right, segment_us, branch_us, tuple(f"kind_{k}" for k in range(kinds)))


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
