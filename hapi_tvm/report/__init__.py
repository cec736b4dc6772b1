"""``report.json`` and the page made from it."""

from hapi_tvm.report.files import read_report, write_page, write_report
from hapi_tvm.report.html import render_html
from hapi_tvm.report.schema import Report, validate

__all__ = ["Report", "read_report", "render_html", "validate", "write_page", "write_report"]
