"""The command ``hapi-tvm search``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hapi_tvm.cli_options import asked_sla, sla_options, traceback_option

if TYPE_CHECKING:
    from hapi_tvm.researching import Found
    from hapi_tvm.search.dataflow import Dataflow

__all__ = ["search"]


def _names(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(","))


@click.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@sla_options
@click.option("--shared-threshold", is_flag=True, help="One threshold for all exits of a design.")
@click.option(
    "--grid",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="How many quantiles of its confidence an exit may have as thresholds.",
)
@click.option("--kinds", metavar="KIND,...", callback=_names, help="Branch kinds that may be placed; all unless given.")
@click.option("--must", metavar="EXIT,...", callback=_names, help="Exits that every design has, such as exit_07.")
@click.option("--must-not", metavar="EXIT,...", callback=_names, help="Exits that no design has.")
@click.option(
    "--max-bytes",
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="Most that the weights of a design's branches may take together.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Most that the design may take, and the front again.",
)
@click.option("--sdf", "with_sdf", is_flag=True, help="Print the design's dataflow graph too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@traceback_option
def search(
    run_dir: Path,
    shared_threshold: bool,
    grid: int,
    kinds: tuple[str, ...] | None,
    must: tuple[str, ...] | None,
    must_not: tuple[str, ...] | None,
    max_bytes: int | None,
    seconds: float,
    with_sdf: bool,
    as_json: bool,
):
    """Search the tables of RUN again, for another SLA or in another space.

    RUN is a folder that `hapi-tvm build` made. Nothing in it changes: this prints the best design and the front
    of accuracy against mean latency, both as predicted on the calibration split. The SLA is given as to build.
    """
    sla = asked_sla()

    from hapi_tvm.researching import candidates_named, read_tables, search_again
    from hapi_tvm.search import Space, sdf

    tables = read_tables(run_dir)
    space = Space(
        shared=shared_threshold,
        grid=grid,
        kinds=kinds,
        must=candidates_named(tables.graph, must or ()),
        must_not=candidates_named(tables.graph, must_not or ()),
        option_bytes=() if max_bytes is None else tables.weight_bytes,
        max_bytes=max_bytes,
    )
    found = search_again(tables, sla, space, seconds=seconds)
    flow = sdf(found.design, tables.calibration, tables.latency) if with_sdf else None
    if as_json:
        _print_json(found, flow)
    else:
        _print_tables(found, flow)


def _print_json(found: Found, flow: Dataflow | None) -> None:
    import json

    from hapi_tvm.recordio import to_json

    result = {
        "design": to_json(found.design),
        "gap": found.gap if math.isfinite(found.gap) else None,
        "plain": to_json(found.plain),
        "front": [to_json(design) for design in found.front],
    }
    if flow is not None:
        result["sdf"] = flow.to_json()
    click.echo(json.dumps(result, indent=1, allow_nan=False))


def _print_tables(found: Found, flow: Dataflow | None) -> None:
    from hapi_tvm.report.search_tables import found_tables, front_table
    from hapi_tvm.report.summary import print_table

    print_table(found_tables(found.design, found.plain))
    click.echo(f"space: {found.design.space}")
    click.echo(f"proof: {_proof(found)}\n")
    print_table(front_table(found.front))
    if flow is not None:
        click.echo(str(flow))


def _proof(found: Found) -> str:
    if found.design.proven_optimal:
        return "no design of the grid is better"
    if not math.isfinite(found.gap):
        return "none in the time given: raise --seconds"
    if found.design.sla.max_accuracy_drop is None:
        return f"accuracy within {100 * found.gap:.2f} points of the grid's best"
    return f"mean latency within {100 * found.gap:.1f} % of the grid's best"
