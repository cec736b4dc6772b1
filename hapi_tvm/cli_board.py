"""The commands ``hapi-tvm board`` and ``hapi-tvm targets``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hapi_tvm.cli_options import traceback_option

if TYPE_CHECKING:
    from hapi_tvm.targets.rpc.check import BoardReport

__all__ = ["board", "targets"]

_WARNING = (
    "warning: TVM's RPC has no password and no encryption, and runs whatever it is sent: "
    "anyone who reaches {host}:{port} can do here what this user can."
)
_LOOPBACK_ONLY = (
    "note: bound to {host}, this board is reached from this machine only, and the tracker {tracker} is elsewhere: "
    "add --host with this board's address on a private network, or bring the port over by ssh."
)

_tracker_option = click.option(
    "--tracker", required=True, metavar="HOST:PORT", help="Where boards register; 127.0.0.1:9190 for one."
)


@click.group()
def board():
    """Serve a board, or check those behind a key."""


@board.command()
@_tracker_option
@click.option("--key", required=True, metavar="KEY", help="What boards of this kind are called, such as rasp4b.")
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for all."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on; the first free one from 9090 on.")
@traceback_option
def serve(tracker: str, key: str, host: str, port: int | None):
    """Make this machine a board: serve TVM's RPC until Ctrl-C.

    The server registers at the tracker, and starts again where a crashing kernel takes it down. It is bound to
    loopback unless told otherwise: TVM's RPC runs whatever it is sent.
    """
    from hapi_tvm.addresses import parse_address, valid_key
    from hapi_tvm.tvm_compat import skip_torch

    address = parse_address(tracker)
    valid_key(key)
    skip_torch()
    from hapi_tvm.board_server import PORTS, is_loopback
    from hapi_tvm.board_server import serve as serve_board

    click.echo(_WARNING.format(host=host, port=port or f"{PORTS.start} and up"), err=True)
    if is_loopback(host) and not is_loopback(address[0]):
        click.echo(_LOOPBACK_ONLY.format(host=host, tracker=tracker), err=True)
    serve_board(address, key, host, port, click.echo)


@board.command()
@click.argument("key")
@_tracker_option
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a board that is in use.",
)
@traceback_option
def check(key: str, tracker: str, wait_s: float):
    """Reach the boards behind KEY and run a kernel on each.

    Prints name, TVM version, speed, noise, clock drift and free memory.
    """
    from hapi_tvm.progress import set_up_logging
    from hapi_tvm.report.summary import print_table
    from hapi_tvm.targets.rpc.check import check_boards
    from hapi_tvm.targets.rpc.tracker import parse_tracker

    set_up_logging(verbose=False)
    reports = check_boards(parse_tracker(tracker, key), wait_s)
    print_table(_boards_table(reports))
    for report in reports:
        if report.gpu is not None:
            click.echo(f"{report.name}: GPU {report.gpu.name}, {report.gpu.arch}")
        if report.unmeasured is not None:
            click.echo(f"{report.name}: not measured: {report.unmeasured}")


@click.command()
@click.option("--tracker", metavar="HOST:PORT", help="Also list the boards registered there.")
@traceback_option
def targets(tracker: str | None):
    """List what can be compiled for, and what can be reached now."""
    from hapi_tvm.addresses import parse_address
    from hapi_tvm.devices import families
    from hapi_tvm.report.summary import add_row, new_table, print_table

    address = None if tracker is None else parse_address(tracker)
    found = families()
    table = new_table("family", "compiles here", "runs")
    for family in found:
        add_row(table, family.name, family.compiles, family.runs)
    print_table(table)
    if address is not None:
        print_table(_registered_table(*address))
    for family in found:
        click.echo(f"{family.name}, {len(family.devices)} devices known to TVM: {', '.join(family.devices)}\n")


def _registered_table(host: str, port: int):
    from hapi_tvm.report.summary import add_row, new_table
    from hapi_tvm.targets.rpc.tracker import Tracker, summary

    registered = summary(Tracker(host, port, key=""))
    table = new_table(f"key at {host}:{port}", "boards", "free", "addresses")
    for key, names in sorted(registered.boards.items()):
        add_row(table, key, str(len(names)), str(registered.free.get(key, 0)), ", ".join(names))
    if not registered.boards:
        add_row(table, "nobody is registered", "0", "0", "on a board: hapi-tvm board serve")
    return table


def _boards_table(reports: list[BoardReport]):
    from hapi_tvm.report.summary import add_row, new_table

    table = new_table("board", "host", "TVM", "speed", "noise", "drift", "round trip", "free memory", "free disk")
    for report in reports:
        add_row(
            table,
            report.name,
            _told(report.facts.host),
            _told(report.facts.tvm_version),
            _told(report.speed_gflops, "{:.1f} GFLOP/s"),
            _told(report.noise, "{:.1%}"),
            _told(report.drift, "{:+.1%}"),
            f"{report.round_trip_ms:.2f} ms",
            _gibibytes(report.facts.free_memory_bytes),
            _gibibytes(report.facts.free_disk_bytes),
        )
    return table


def _told(value: object, form: str = "{}") -> str:
    return "not told" if value is None else form.format(value)


def _gibibytes(size_bytes: int | None) -> str:
    return _told(None if size_bytes is None else size_bytes / 2**30, "{:.1f} GiB")
