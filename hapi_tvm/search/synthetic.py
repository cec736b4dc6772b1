"""Tables made up to try a search on: given numbers as records, and random ones shaped like a real network's."""

from __future__ import annotations

import numpy as np

from hapi_tvm.records import CalibrationTable, Candidate, ExitGraph, KernelLatency, LatencyTable, Option

__all__ = ["Tables", "network", "tables"]

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


def network(seed: int, *, samples: int, candidates: int, kinds: int = 2, likeness: float = 0.0) -> Tables:
    """Exits that grow better with depth and err on the same hard samples; the second kind costs more.

    likeness: of an exit's and its neighbour's own errors, in [0, 1): their correlation beside what is hard for all.
    """
    random = np.random.default_rng(seed)
    difficulty = random.gumbel(size=(samples, 1))
    depth = np.repeat(np.linspace(0.05, 1.0, candidates), kinds)
    kind = np.tile(np.arange(kinds), candidates)
    strength = 4.5 * depth**0.6 + 0.4 * kind
    margin = strength - 1.2 * difficulty + _along_depth(random.normal(size=(samples, candidates, kinds)), likeness)
    backbone_margin = 5.0 - 1.2 * difficulty + random.normal(size=(samples, 1))
    right = random.random((samples, candidates * kinds + 1)) < 1 / (
        1 + np.exp(-np.hstack([margin, backbone_margin]))
    )
    noise = 0.7 * _along_depth(random.normal(size=(samples, candidates, kinds)), likeness)
    confidence = 0.1 + 0.9 / (1 + np.exp(-(margin + noise)))
    segment_us = random.uniform(20, 40, candidates + 1)
    branch_us = np.where(kind == 0, 3.0, 14.0) * random.uniform(0.8, 1.2, candidates * kinds)
    return tables(confidence, right, segment_us, branch_us, tuple(f"kind_{k}" for k in range(kinds)))


def _along_depth(noise: np.ndarray, likeness: float) -> np.ndarray:
    """noise: standard normal [N, E, kinds]. Returns [N, E * kinds], standard normal still, each candidate
    correlated with the one before."""
    for candidate in range(1, noise.shape[1]):
        fresh = np.sqrt(1 - likeness**2) * noise[:, candidate]
        noise[:, candidate] = likeness * noise[:, candidate - 1] + fresh
    return noise.reshape(len(noise), -1)
