"""The report page: whole, self-contained, and showing the figures of ``report.json``."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser

import pytest

from hapi_tvm.errors import RecordError
from hapi_tvm.report import read_report, render_html, validate, write_report
from hapi_tvm.report.figures import pareto_scatter, round_ticks, time_stack
from hapi_tvm.report.html import format_us


def sample_report():
    """Three exits on a ResNet-56; every figure differs from the others, so that each can be looked for."""
    reach, rates = [1.0, 0.58, 0.3412, 0.2231], [0.42, 0.2388, 0.1181, 0.2231]
    names = ["layer1.block6", "layer2.block3", "layer3.block1"]
    segments_us, branches_us = [612.0, 287.0, 421.0, 741.0], [21.4, 12.6, 9.8]
    shares = [0.36, 0.16, 0.19, 0.29]
    sigma = 0.012
    return {
        "model": "resnet56",
        "target": "llvm -mcpu=cascadelake",
        "dataset": "fashion-mnist (embedded)",
        "splits": {"train": 5000, "calibration": 5000, "test": 5000},
        "candidates": 27,
        "design": {
            "exits": [
                {
                    "name": name,
                    "flops_share": round(sum(shares[: i + 1]), 2),
                    "branch": branch,
                    "threshold": threshold,
                }
                for i, (name, branch, threshold) in enumerate(
                    zip(names, ["conv", "linear", "linear"], [0.9713, 0.9342, 0.9127], strict=True)
                )
            ]
        },
        "backbone": {"test_accuracy": 0.9364, "latency_us": {"mean": 2083.0, "p50": 2071.0, "p95": 2160.0}},
        "hapi": {
            "test_accuracy": 0.9311,
            "latency_us": {"mean": 1132.0, "p50": 921.0, "p95": 2127.0, "p99": 2163.0, "worst": 2604.0},
            "exit_rates": rates,
        },
        "predicted": {
            "accuracy": 0.9330,
            "accuracy_drop": 0.0041,
            "accuracy_drop_upper": 0.0083,
            "mean_latency_us": 1107.0,
            "p50_latency_us": 933.0,
            "p95_latency_us": 2104.0,
            "p99_latency_us": 2104.0,
            "worst_latency_us": 2105.0,
            "deadline_us": 2105.0,
            "exit_rates": [0.437, 0.229, 0.121, 0.213],
        },
        "certificate": {
            "epsilon": 0.01,
            "delta": 0.1,
            "method": "exact test of the paired difference",
            "n": 2500,
            "verdict": "certified: an accuracy drop of at most 1 point",
            "certified": True,
            "tests": [
                {
                    "exits": exits,
                    "mean_us": mean_us,
                    "lost": lost,
                    "gained": gained,
                    "p_value": p_value,
                    "passed": passed,
                    "needs_more": needs_more,
                }
                for exits, mean_us, lost, gained, p_value, passed, needs_more in (
                    (3, 1107.0, 27, 14, 0.0124, True, None),
                    (4, 986.0, 41, 17, 0.3131, False, 2750),
                )
            ],
        },
        "generalisation": {
            "searched_drop": 0.0041,
            "unseen_drop": 0.0056,
            "gap": 0.0015,
            "standard_error": 0.0019,
        },
        "pareto": [
            {"accuracy": 0.9378 - 0.24 * 2.718 ** (-us / 320.0), "mean_latency_us": us, "exits": 1 + i % 4}
            for i, us in enumerate(range(250, 2050, 75))
        ],
        "segments": [
            {
                "name": f"segment_{i}",
                "median_us": us,
                "sigma_us": sigma * us,
                "measured": True,
                "flops_share": share,
                "reach": r,
            }
            for i, (us, share, r) in enumerate(zip(segments_us, shares, reach, strict=True))
        ],
        "exits_breakdown": [
            {
                "name": name,
                "branch_us": us,
                "sigma_us": sigma * us,
                "measured": i != 2,
                "reach": r,
                "rate": rate,
                "accuracy": 0.99 - 0.01 * i,
            }
            for i, (name, us, r, rate) in enumerate(zip(names, branches_us, reach, rates, strict=False))
        ],
        "kernels": [
            {
                "name": f"fused_conv2d{i}_add_relu",
                "key": f"{i:016x}",
                "median_us": 31.0 + 7 * i,
                "sigma_us": 0.4,
                "measured": i % 5 != 4,
                "count": 1 + 3 * (i % 4),
            }
            for i in range(12)
        ],
        "machine": {"cpu": "Example CPU @ 2.6 GHz", "cores": 2, "os": "Linux 6.1", "python": "3.11.4"},
        "threads": 1,
        "tvm_version": "0.27.0",
        "sla": {
            "max_accuracy_drop": 0.01,
            "mean_latency_ms": None,
            "p95_latency_ms": 2.1,
            "p99_latency_ms": None,
            "worst_latency_ms": None,
            "deadline_ms": None,
            "latency_quantile": 0.5,
            "drop_confidence": 0.95,
            "max_exits": 4,
        },
        "search": {"space": "27 exits, 2 kinds, one shared threshold of 64", "proven_optimal": True},
        "verification": {
            "samples": 5000,
            "same_exit": 5000,
            "same_label": 4999,
            "margins_under_1e-5": [{"sample": 4711, "exit": "layer2.block3", "margin": 3.2e-6}],
        },
        "timings_s": {"import": 6.1, "features": 41.0, "train": 38.4, "tune": 162.0, "search": 2.2},
        "run_started": "2030-01-02T03:04:05+00:00",
    }


class _Page(HTMLParser):
    """Raises on a closing tag that closes nothing; collects text, attributes and what stays open."""

    VOID = {"meta", "link", "br", "img", "input"}

    def __init__(self, source):
        super().__init__()
        self.open, self.words, self.attributes, self.tags = [], [], [], []
        self.feed(source)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def html():
    return render_html(sample_report())


def test_every_tag_is_closed_and_the_page_has_its_three_figures(html):
    page = _Page(html)
    assert page.open == []
    assert sum(name == "role" and value == "img" for name, value in page.attributes) == 3


def test_the_figures_of_the_report_are_on_the_page(html):
    text = _Page(html).text
    for figure in (
        "1.13 ms",
        "2.08 ms",
        "1.84× faster",
        "93.11 %",
        "−0.53",
        "3 of 27",
        "0.9713",
        "42.0 %",
        "predicted 1.11 ms",
        "+2.3 %",
        "12 distinct, 10 measured, 2 predicted",
        "give the same label on 4,999",
        "An exact test of the paired difference on 2,500 images",
        "Certified: an accuracy drop of at most 1 point.",
        "1 3 1.11 ms 27 14 +0.52 points 0.012 passed",
        "2 4 986 µs 41 17 +0.96 points 0.313 failed",
        "+0.41 points where the design was searched and +0.56 points on the test split",
        "+0.15 points apart (± 0.19, one standard error)",
        "Example CPU @ 2.6 GHz",
    ):
        assert figure in text, figure


def test_a_missed_latency_is_called_missed(html):
    text = _Page(html).text
    assert re.search(r"p95 latency at most 2\.10 ms 2\.10 ms 2\.13 ms not met", text)
    assert re.search(r"accuracy drop at most 1\.00 points 0\.41 \(limit 0\.83\) 0\.53 points met", text)


def test_nothing_is_loaded_from_elsewhere(html):
    page = _Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert "http" not in html and "url(" not in html and "@import" not in html


def test_names_are_escaped():
    report = sample_report()
    report["model"] = "<script>alert(1)</script>"
    report["design"]["exits"][0]["name"] = 'a"><b>&'
    page = _Page(render_html(report))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>, with early exits" in page.text


def test_an_exit_that_nobody_takes_has_no_accuracy():
    report = sample_report()
    report["exits_breakdown"][1]["accuracy"] = None
    assert "none left" in _Page(render_html(report)).text


def test_a_design_that_is_slower_says_so():
    report = sample_report()
    report["hapi"]["latency_us"]["mean"] = 2 * report["backbone"]["latency_us"]["mean"]
    assert "2.00× slower on average" in _Page(render_html(report)).text


def test_a_design_without_exits_has_a_page():
    report = sample_report()
    report["design"]["exits"], report["exits_breakdown"] = [], []
    report["segments"], report["pareto"], report["certificate"] = report["segments"][:1], [], None
    report["hapi"]["exit_rates"] = report["predicted"]["exit_rates"] = [1.0]
    page = _Page(render_html(report))
    assert page.open == [] and "the design is the plain backbone" in page.text


def test_a_deadline_and_planned_latencies_are_on_the_page():
    report = sample_report()
    page = render_html(report)
    assert "deadline" not in page and "quantile of its uncertain costs" not in page
    report["sla"] |= {"deadline_ms": 2.5, "latency_quantile": 0.9}
    text = _Page(render_html(report)).text
    assert "deadline" in text and "at most 2.50 ms" in text
    assert "planned at the 90.0 % quantile of its uncertain costs" in " ".join(text.split())


def test_the_stack_adds_up_to_the_weighted_cost():
    plain, design = time_stack(sample_report()).rows
    assert plain.total_us == pytest.approx(612 + 287 + 421 + 741)
    expected_us = 612 + 21.4 + 0.58 * (287 + 12.6) + 0.3412 * (421 + 9.8) + 0.2231 * 741
    assert design.total_us == pytest.approx(expected_us)
    for row in (plain, design):
        for left, right in zip(row.slices, row.slices[1:], strict=False):
            assert right.x == pytest.approx(left.x + left.width, abs=0.02)


def test_all_marks_lie_inside_the_plot_and_hidden_designs_are_counted():
    report = sample_report()
    scatter = pareto_scatter(report)
    assert len(scatter.front) + scatter.hidden == len(report["pareto"])
    assert scatter.hidden > 0
    for mark in (*scatter.front, scatter.plain, scatter.predicted, scatter.measured):
        assert scatter.left <= mark.x <= scatter.width and 0 <= mark.y <= scatter.bottom


@pytest.mark.parametrize("low, high", [(0.0, 1e-3), (0.0, 2083.0), (0.912, 0.9391), (-1.0, 7e6)])
def test_ticks_enclose_the_range_evenly(low, high):
    ticks = round_ticks(low, high, 5)
    steps = [b - a for a, b in zip(ticks, ticks[1:], strict=False)]
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12
    assert 3 <= len(ticks) <= 13 and max(steps) == pytest.approx(min(steps))


@pytest.mark.parametrize(
    "value_us, text",
    [
        (0.0, "0.000 µs"),
        (3.14159, "3.14 µs"),
        (412.4, "412 µs"),
        (999.7, "1.00 ms"),
        (1838.0, "1.84 ms"),
        (2.5e6, "2.50 s"),
    ],
)
def test_latencies_print_three_digits_in_the_unit_that_fits(value_us, text):
    assert format_us(value_us) == text


def _without(report, path):
    inner = report
    *parents, last = path.split(".")
    for key in parents:
        inner = inner[key]
    del inner[last]


def _leaves(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            if path in (("splits",), ("timings_s",)):
                continue
            yield (*path, key)
            yield from _leaves(inner, (*path, key))


@pytest.mark.parametrize("path", [".".join(path) for path in _leaves(sample_report())])
def test_every_key_is_required(path):
    report = sample_report()
    _without(report, path)
    with pytest.raises(RecordError, match=re.escape(f"{path} is missing")):
        validate(report)


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("candidates",), 2.5, "candidates is 2.5, which is no int"),
        (("candidates",), True, "candidates is True, which is no int"),
        (("hapi", "test_accuracy"), float("nan"), "hapi.test_accuracy is nan"),
        (("hapi", "latency_us", "mean"), 0.0, "hapi.latency_us.mean is 0.0"),
        (("hapi", "exit_rates"), [0.5, 0.5], "hapi.exit_rates has 2 entries; 3 exits need 4"),
        (("hapi", "exit_rates"), [0.5, 0.5, 0.5, 0.5], "sum to 2.0"),
        (("segments", 1, "measured"), "yes", r"segments\[1\].measured is 'yes'"),
        (("model",), None, "model is None"),
        (("run_started",), "2030-01-02T03:04:05", "run_started is '2030-01-02T03:04:05'"),
        (("run_started",), "yesterday", "run_started is 'yesterday'"),
    ],
)
def test_wrong_values_are_named(path, value, message):
    report = sample_report()
    inner = report
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(RecordError, match=message):
        validate(report)


def test_keys_beyond_the_schema_pass():
    assert validate({**sample_report(), "comment": "kept"})["comment"] == "kept"


def test_written_reports_read_back_the_same_and_leave_nothing_else(tmp_path):
    report = sample_report()
    page = write_report(tmp_path, copy.deepcopy(report))
    assert read_report(tmp_path) == report
    assert page.read_text(encoding="utf-8") == render_html(report)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]


def test_a_broken_report_replaces_nothing(tmp_path):
    write_report(tmp_path, sample_report())
    broken = sample_report()
    del broken["hapi"]
    with pytest.raises(RecordError):
        write_report(tmp_path, broken)
    assert read_report(tmp_path) == sample_report()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "does not exist"),
        ("{", "cannot be read"),
        ("[]", "the file is"),
        (json.dumps({}), "model is missing"),
    ],
)
def test_unreadable_reports_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(RecordError, match=message):
        read_report(tmp_path)
