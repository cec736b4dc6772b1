"""What a certificate says, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from hapi_tvm.records import DesignTest

__all__ = ["verdict"]


def verdict(tests: Sequence[DesignTest], samples: int, epsilon: float, delta: float) -> str:
    """tests: in their order; at most the last one failed. samples: of the certification split."""
    passed = [tested for tested in tests if tested.passed]
    if not passed:
        return "not certified: " + _lacks(tests[0], samples)
    if not passed[-1].exits:
        return "certified: the design is the plain backbone, which loses nothing"
    text = f"certified: an accuracy drop of at most {_points(epsilon)}, with confidence {100 - 100 * delta:g} %"
    return text if len(passed) == len(tests) else f"{text}; a faster design was not: {_lacks(tests[-1], samples)}"


def _lacks(tested: DesignTest, samples: int) -> str:
    if tested.needs_more is None:
        drop = 100 * (tested.lost - tested.gained) / samples
        return f"it loses {drop:.2f} points on {samples:,} samples, and more samples would not help"
    return f"needs about {tested.needs_more:,} more samples"


def _points(share: float) -> str:
    """Never rounded to less than was tested."""
    text = f"{100 * share:g}"
    return f"{text} point" if text == "1" else f"{text} points"
