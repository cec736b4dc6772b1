"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from hapi_tvm.errors import SLAError

if TYPE_CHECKING:
    from hapi_tvm.records import SLA

__all__ = ["TRACEBACK", "asked_sla", "sla_options", "traceback_option"]

TRACEBACK = "hapi_tvm.traceback"
"""Where the context's ``meta`` holds whether a traceback is wanted."""

_ASKED = "hapi_tvm.sla"
_DEFAULT_DROP = 0.01


def _remember_traceback(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    ctx.meta[TRACEBACK] = wanted


traceback_option = click.option(
    "--traceback",
    is_flag=True,
    envvar="HAPI_TRACEBACK",
    expose_value=False,
    is_eager=True,
    callback=_remember_traceback,
    help="Print the Python traceback of an error.",
)


def _remember_line(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None and value != ():
        ctx.meta.setdefault(_ASKED, {})[parameter.name] = value


def _line(*names: str, of: click.ParamType | type = float, says: str = "", metavar: str | None = None) -> Callable:
    """One line of an SLA; absent unless given, so that the defaults are those of ``SLA``."""
    return click.option(
        *names, type=of, metavar=metavar, help=says, expose_value=False, callback=_remember_line
    )


_LINES = (
    _line("--max-accuracy-drop", metavar="SHARE", says="0.01 is one point."),
    _line("--mean-latency-ms", metavar="MS", says="Budget of an average sample."),
    _line("--p95-latency-ms", metavar="MS", says="Budget of 95 % of the samples."),
    _line("--p99-latency-ms", metavar="MS", says="Budget of 99 % of the samples."),
    _line("--worst-latency-ms", metavar="MS", says="Budget of every sample, whatever the exits answer."),
    _line("--deadline-ms", metavar="MS", says="When the last exit in time answers, sure or not."),
    _line("--max-exits", of=click.IntRange(min=0), says="How many a design may place.  [default: 4]"),
    _line(
        "--drop-confidence",
        says="Level at which the accuracy drop is held; 0.5 takes the plain estimate.  [default: 0.95]",
    ),
    _line(
        "--latency-quantile",
        "--quantile",
        says="Plan with this quantile of each uncertain cost; 0.5 takes the medians.  [default: 0.5]",
    ),
    _line(
        "--certify-delta",
        metavar="RISK",
        says="Certify the drop on half of the calibration split, in a build; 0.1 is a confidence of 90 %.",
    ),
    click.option(
        "--sla",
        multiple=True,
        metavar="NAME=VALUE,...",
        help="The same as text, such as mean_latency_ms=0.4,max_exits=2.",
        expose_value=False,
        callback=_remember_line,
    ),
)


def sla_options(command: Callable) -> Callable:
    """The lines of an ``SLA``, each an option of its own, for a command that calls ``asked_sla``."""
    for option in reversed(_LINES):
        command = option(command)
    return command


def asked_sla() -> SLA:
    """What the running command was asked; an accuracy drop of one point where nothing limits anything."""
    from hapi_tvm.records import DROP_LIMIT, LATENCY_LIMITS, SLA
    from hapi_tvm.sla_text import parse_lines

    asked = dict(click.get_current_context().meta.get(_ASKED, {}))
    for text in asked.pop("sla", ()):
        for name, value in parse_lines(text).items():
            if name in asked:
                raise SLAError(f"SLA: {name} is given twice, {asked[name]} and {value}; give it once")
            asked[name] = value
    if not asked.keys() & {DROP_LIMIT, *LATENCY_LIMITS.values()}:
        asked[DROP_LIMIT] = _DEFAULT_DROP
    return SLA(**asked)
