"""The options that name a target; each family takes some of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hapi_tvm.targets import Target

__all__ = ["asked_target", "target_options"]

_ASKED = "hapi_tvm.target"
_BOARDS = ("tracker", "key")
_TAKEN = {
    "llvm": ("threads", "mcpu", *_BOARDS),
    "arm": ("threads", "mcpu", "device", *_BOARDS),
    "cuda": ("arch", "device", *_BOARDS),
}


def _remember(ctx: click.Context, parameter: click.Parameter, value: object) -> None:
    if value is not None:
        ctx.meta.setdefault(_ASKED, {})[parameter.name] = value


def _option(name: str, says: str, of: click.ParamType | type = str, metavar: str | None = None) -> Callable:
    """Absent unless given, so that the defaults are the family's."""
    return click.option(name, type=of, metavar=metavar, help=says, expose_value=False, callback=_remember)


_OPTIONS = (
    click.option(
        "--target",
        type=click.Choice(list(_TAKEN)),
        default="llvm",
        show_default=True,
        help="Family of the device.",
        expose_value=False,
        callback=_remember,
    ),
    _option("--threads", "llvm, arm: of the processor.  [default: 1]", click.IntRange(min=1)),
    _option("--mcpu", "llvm, arm: LLVM's name of the processor; the device's unless given.", metavar="NAME"),
    _option("--arch", "cuda: of the GPU, such as sm_87; the device's unless given.", metavar="SM"),
    _option("--device", "arm, cuda: one of those that `hapi-tvm targets` lists.", metavar="TAG"),
    _option("--tracker", "TVM's RPC tracker; with --key, runs all on boards there.", metavar="HOST:PORT"),
    _option("--key", "Of the boards, which must be alike.", metavar="KEY"),
)


def target_options(command: Callable) -> Callable:
    """For a command that calls ``asked_target``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def asked_target() -> Target:
    """What the running command was asked. Raises UsageError for an option that the family does not take."""
    import hapi_tvm as hapi

    asked = dict(click.get_current_context().meta[_ASKED])
    family = asked.pop("target")
    for name in asked:
        if name not in _TAKEN[family]:
            takers = " or ".join(other for other, taken in _TAKEN.items() if name in taken)
            raise click.UsageError(f"--{name} is for --target {takers}; this one is {family}")
    return getattr(hapi.targets, family)(**asked)
