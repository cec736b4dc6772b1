"""The simulation script: its form, and that it finds what it looks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import check_certificates
from tests.checkout import ROOT, SCRIPTS


def test_the_script_prints_the_agreed_form():
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "check_certificates.py"), "--redraws", "4", "--population", "4000"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result) == {"redraws", "population", "searched", "at_the_limit", "holds", "seconds"}
    assert len(result["searched"]) == 2 * len(check_certificates.SETTINGS)
    assert len(result["at_the_limit"]) == len(check_certificates.LIMITS)
    for row in result["searched"]:
        assert row["exceeds"] <= row["certified"] * 4 <= 4
        low, high = row["interval_95"]
        assert low <= row["of_redraws"] <= high
    assert result["holds"] == all(row["holds"] for row in result["searched"] + result["at_the_limit"])


def test_a_test_that_is_too_bold_is_caught():
    assert check_certificates.verdict(exceeds=130, count=1000, delta=0.1)["holds"] is False
    assert check_certificates.verdict(exceeds=110, count=1000, delta=0.1)["holds"] is True


def test_the_populations_exits_are_worth_searching():
    """Else nothing would be at stake: the backbone is good, late exits are near it, the first is not."""
    right = check_certificates.answers(np.random.default_rng(0), 50_000).right.mean(axis=0)
    assert right[-1] > 0.85
    assert (np.diff(right) > 0).all() and right[0] < right[-1] - 0.02


@pytest.mark.parametrize("setting", check_certificates.SETTINGS)
def test_a_setting_is_an_sla_that_certifies(setting):
    assert setting.sla.certify_delta == setting.delta and setting.samples % 2 == 0
