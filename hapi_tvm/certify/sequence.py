"""Fixed-sequence testing: designs in a given order, each at the full level, until one fails."""

from __future__ import annotations

from collections.abc import Sequence

from hapi_tvm.certify.counts import Counts
from hapi_tvm.certify.needed import samples_needed
from hapi_tvm.certify.pvalues import PAIRED, LossTest
from hapi_tvm.certify.verdict import verdict
from hapi_tvm.errors import RecordError, SLAError
from hapi_tvm.hashing import digest
from hapi_tvm.records import CalibrationTable, Certificate, Design, DesignTest

__all__ = ["certify"]


def certify(
    designs: Sequence[Design], table: CalibrationTable, *, epsilon: float, delta: float, test: LossTest = PAIRED
) -> tuple[Design, Certificate]:
    """The fastest design that can be certified, with its certificate; the first one, with what it lacks, if none can.

    designs: in the order of testing, the safest first. It must have been fixed without ``table``. Each is tested at
    ``delta`` itself, and the first that fails ends the sequence. The chance that a design passes whose drop is
    above epsilon is then at most delta all the same: the first of these in the order must pass for it, and that
    alone has a chance of delta. From the safest on, because a sequence that begins with the fastest design and
    fails there would certify nothing.

    A design without exits is the backbone, loses nothing by definition, and passes on any samples.

    epsilon: accuracy drop as a share of the samples; delta: the risk; both in (0, 1), else SLAError. RecordError
    where there is no design, where ``table`` lacks one's exits, or where one was searched on ``table``.
    """
    _check(designs, table, epsilon, delta)
    tests: list[DesignTest] = []
    for design in designs:
        tests.append(_tested(design, Counts.of_design(table, design), epsilon, delta, test))
        if not tests[-1].passed:
            break
    passed = sum(tested.passed for tested in tests)
    certificate = Certificate(
        epsilon=epsilon,
        delta=delta,
        method=test.method,
        n=len(table.label),
        verdict=verdict(tests, len(table.label), epsilon, delta),
        certified=passed > 0,
        tests=tuple(tests),
    )
    return designs[max(passed - 1, 0)], certificate


def _tested(design: Design, counts: Counts, epsilon: float, delta: float, test: LossTest) -> DesignTest:
    p_value = test.p_value(counts, epsilon, delta) if design.exits else 0.0
    passed = p_value <= delta
    needed = None if passed else samples_needed(counts, epsilon, delta, test)
    return DesignTest(
        exits=len(design.exits),
        mean_us=design.predicted.mean_us,
        lost=counts.lost,
        gained=counts.gained,
        p_value=p_value,
        passed=passed,
        needs_more=None if needed is None else needed - counts.samples,
    )


def _check(designs: Sequence[Design], table: CalibrationTable, epsilon: float, delta: float) -> None:
    if not 0 < epsilon < 1:
        raise SLAError(f"certify: epsilon={epsilon} must lie in (0, 1); one point of accuracy is 0.01")
    if not 0 < delta < 1:
        raise SLAError(f"certify: delta={delta} must lie in (0, 1); 0.1 is a confidence of 90 %")
    if not designs:
        raise RecordError("certify: no design given; the sequence needs one at least")
    seen = digest(table)
    for index, design in enumerate(designs):
        if design.provenance.get("calibration") == seen:
            raise RecordError(
                f"certify: designs[{index}] was searched on the split {table.split!r} itself; hold samples out of "
                "the search for the certificate"
            )
