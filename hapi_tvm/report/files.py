"""A run folder's ``report.json`` and ``report.html``, written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from hapi_tvm.errors import RecordError
from hapi_tvm.report.html import render_html
from hapi_tvm.report.schema import Report, validate

__all__ = ["read_report", "write_page", "write_report"]


def read_report(run_dir: str | os.PathLike) -> Report:
    """The validated ``report.json`` of a run. Raises RecordError where there is none, or a broken one."""
    path = Path(run_dir) / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"{path} does not exist; `hapi-tvm build ... --run {run_dir}` writes it") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read ({error}); run the build again") from error
    return validate(report)


def write_report(run_dir: str | os.PathLike, report: Report) -> Path:
    """Write both files, the page rendered from ``report``; returns the page's path."""
    validate(report)
    _replace(Path(run_dir) / "report.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
    return write_page(run_dir, report)


def write_page(run_dir: str | os.PathLike, report: Report) -> Path:
    """Render ``report.html`` alone; returns its path."""
    page = Path(run_dir) / "report.html"
    _replace(page, render_html(report))
    return page


def _replace(path: Path, text: str) -> None:
    """Put ``text`` at ``path`` in one step, so that no reader finds half of it.

    A run folder sweeps away what a killed process leaves behind, by its prefix (``RunFolder.open``).
    """
    prefix = f".tmp-{path.name}-"
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=prefix, delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
