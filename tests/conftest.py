"""Fixtures of the small job. TVM and torch are imported by those who ask for one."""

from __future__ import annotations

from dataclasses import replace

import pytest


@pytest.fixture(scope="session")
def unbuilt(tmp_path_factory):
    """A ``SmallJob`` before any stage ran: do not build it, take ``fresh``."""
    from tests.small_job import prepared

    return prepared(tmp_path_factory.mktemp("small_job"))


@pytest.fixture(scope="session")
def built(unbuilt):
    """The finished job. All tests share its folders: to change them, take ``copied``."""
    unbuilt.build()
    return unbuilt


@pytest.fixture
def fresh(unbuilt, tmp_path):
    """The job before any stage ran, with folders of its own."""
    return replace(unbuilt, run_dir=tmp_path / "run", database_dir=tmp_path / "database")


@pytest.fixture
def copied(built, tmp_path):
    """The finished job, with folders of its own."""
    return built.copied(tmp_path)
