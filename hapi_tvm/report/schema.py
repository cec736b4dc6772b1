"""The shape of ``report.json``: what the build writes, what the page and the command line read.

Latencies are microseconds and one sample at a time. ``measured`` is True where a figure was timed on
the target and False where the surrogate predicted it; ``sigma_us`` is its standard error either way.
``validate`` checks a loaded file against these types and the sums that must hold.
"""

from __future__ import annotations

import math
from datetime import datetime
from types import NoneType, UnionType
from typing import Any, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from hapi_tvm.errors import RecordError

__all__ = ["Report", "validate"]


class PlainLatency(TypedDict):
    """Of the plain compiled backbone: same kernels, no exits."""

    mean: float
    p50: float
    p95: float


class HapiLatency(PlainLatency):
    """Of the compiled artifact over the test split."""

    p99: float
    worst: float


class PlacedExit(TypedDict):
    """flops_share: share of the backbone's operations spent before it. branch: its kind."""

    name: str
    flops_share: float
    branch: str
    threshold: float


class Design(TypedDict):
    exits: list[PlacedExit]


class Backbone(TypedDict):
    test_accuracy: float
    latency_us: PlainLatency


class Hapi(TypedDict):
    """exit_rates: share of test samples that leave at each exit, the backbone's end last; sums to 1."""

    test_accuracy: float
    latency_us: HapiLatency
    exit_rates: list[float]


class Predicted(TypedDict):
    """What the search expected, from the calibration split and the latency table.

    accuracy_drop: backbone minus design; accuracy_drop_upper: its limit at ``sla.drop_confidence``. Latencies are
    planned at ``sla.latency_quantile``.
    """

    accuracy: float
    accuracy_drop: float
    accuracy_drop_upper: float
    mean_latency_us: float
    p50_latency_us: float
    p95_latency_us: float
    p99_latency_us: float
    worst_latency_us: float
    deadline_us: float
    exit_rates: list[float]


class DesignTest(TypedDict):
    """A design that was put to the certification split, see ``records.DesignTest``."""

    exits: int
    mean_us: float
    lost: int
    gained: int
    p_value: float
    passed: bool
    needs_more: int | None


class Certificate(TypedDict):
    """See ``records.Certificate``. It speaks of the design that was built."""

    epsilon: float
    delta: float
    method: str
    n: int
    verdict: str
    certified: bool
    tests: list[DesignTest]


class Generalisation(TypedDict):
    """Accuracy drops of the chosen design where it was searched and on the test split, as shares of the samples.

    gap: unseen less searched. standard_error: of the gap, see ``certify.Gap``.
    """

    searched_drop: float
    unseen_drop: float
    gap: float
    standard_error: float


class ParetoPoint(TypedDict):
    """A design no other design beats, as predicted on the calibration split. exits: how many it places."""

    accuracy: float
    mean_latency_us: float
    exits: int


class SegmentCost(TypedDict):
    """A segment of the chosen design, in call order: one for each exit and one behind the last.

    flops_share: of this segment alone. reach: share of test samples that enter it.
    """

    name: str
    median_us: float
    sigma_us: float
    measured: bool
    flops_share: float
    reach: float


class ExitCost(TypedDict):
    """An exit of the chosen design: what its branch and gate cost, who comes and who leaves.

    rate: share of all test samples that leave here. accuracy: among those, None where nobody leaves.
    """

    name: str
    branch_us: float
    sigma_us: float
    measured: bool
    reach: float
    rate: float
    accuracy: float | None


class KernelCost(TypedDict):
    """A distinct kernel of the chosen design. count: calls on the longest path through it."""

    name: str
    key: str
    median_us: float
    sigma_us: float
    measured: bool
    count: int


class Machine(TypedDict):
    """Where the latencies come from; for a board, the board."""

    cpu: str
    cores: int
    os: str
    python: str


class SLA(TypedDict):
    """As asked for; None where nothing was."""

    max_accuracy_drop: float | None
    mean_latency_ms: float | None
    p95_latency_ms: float | None
    p99_latency_ms: float | None
    worst_latency_ms: float | None
    deadline_ms: float | None
    latency_quantile: float
    drop_confidence: float
    max_exits: int


class Search(TypedDict):
    """space: what was searched, in words. proven_optimal: no better design exists in it."""

    space: str
    proven_optimal: bool


class Margin(TypedDict):
    """A test sample whose confidence lies this close to an exit's threshold."""

    sample: int
    exit: str
    margin: float


Verification = TypedDict(
    "Verification",
    {
        "samples": int,
        "same_exit": int,
        "same_label": int,
        "margins_under_1e-5": list[Margin],
    },
)
Verification.__doc__ = """The artifact against the same design evaluated outside TVM, on the test split.

same_exit, same_label: on how many of ``samples`` both agree.
"""


class Report(TypedDict):
    """splits: sizes by name. candidates: how many. timings_s: seconds by stage.

    run_started: as ``datetime.isoformat`` writes it, with the time zone.
    """

    model: str
    target: str
    dataset: str
    splits: dict[str, int]
    candidates: int
    design: Design
    backbone: Backbone
    hapi: Hapi
    predicted: Predicted
    certificate: Certificate | None
    generalisation: Generalisation
    pareto: list[ParetoPoint]
    segments: list[SegmentCost]
    exits_breakdown: list[ExitCost]
    kernels: list[KernelCost]
    machine: Machine
    threads: int
    tvm_version: str
    sla: SLA
    search: Search
    verification: Verification
    timings_s: dict[str, float]
    run_started: str


def validate(report: Any) -> Report:
    """``report`` itself, once every key is there, of its type, and the parts agree; keys beyond pass.

    Raises RecordError naming the first key that is not, such as ``hapi.latency_us.p95``.
    """
    _check(report, Report, "")
    exits = len(report["design"]["exits"])
    for path, found, needed in (
        ("hapi.exit_rates", len(report["hapi"]["exit_rates"]), exits + 1),
        ("predicted.exit_rates", len(report["predicted"]["exit_rates"]), exits + 1),
        ("segments", len(report["segments"]), exits + 1),
        ("exits_breakdown", len(report["exits_breakdown"]), exits),
    ):
        if found != needed:
            raise RecordError(
                f"report: {path} has {found} entries; {exits} exits need {needed}; run the build again"
            )
    for side in ("backbone", "hapi"):
        for metric, value_us in report[side]["latency_us"].items():
            if value_us <= 0:
                raise RecordError(f"report: {side}.latency_us.{metric} is {value_us}, which is no latency")
    _check_started(report["run_started"])
    total = sum(report["hapi"]["exit_rates"])
    if not math.isclose(total, 1.0, abs_tol=1e-6):
        raise RecordError(f"report: hapi.exit_rates sum to {total}, not 1; run the build again")
    return report


def _check_started(text: str) -> None:
    try:
        zone = datetime.fromisoformat(text).tzinfo
    except ValueError:
        zone = None
    if zone is None:
        raise RecordError(
            f"report: run_started is {text!r}; it must read as 2030-01-02T03:04:05+00:00, zone included"
        )


def _check(value: Any, kind: Any, path: str) -> None:
    """Compare a value read from JSON with one of the types used above, in depth."""
    if is_typeddict(kind):
        _check_is(value, dict, path)
        for key, inner in get_type_hints(kind).items():
            place = f"{path}.{key}" if path else key
            if key not in value:
                raise RecordError(f"report: {place} is missing; run the build again to write the report anew")
            _check(value[key], inner, place)
    elif get_origin(kind) is list:
        _check_is(value, list, path)
        for index, item in enumerate(value):
            _check(item, get_args(kind)[0], f"{path}[{index}]")
    elif get_origin(kind) is dict:
        _check_is(value, dict, path)
        for key, item in value.items():
            _check(item, get_args(kind)[1], f"{path}.{key}")
    elif isinstance(kind, UnionType):
        if value is not None:
            _check(value, next(arm for arm in get_args(kind) if arm is not NoneType), path)
    else:
        _check_is(value, kind, path)


def _check_is(value: Any, kind: type, path: str) -> None:
    """A bool is no number, an int is a float, and neither NaN nor infinity is one."""
    accepted: tuple[type, ...] = (int, float) if kind is float else (kind,)
    wrong_bool = isinstance(value, bool) and kind is not bool
    if wrong_bool or not isinstance(value, accepted):
        raise RecordError(f"report: {path or 'the file'} is {value!r}, which is no {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise RecordError(f"report: {path} is {value!r}; every figure must be finite")
