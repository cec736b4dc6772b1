"""The command ``hapi-tvm``. It parses and prints; the package does the work.

Everything heavy is imported inside the commands: ``--help`` answers before TVM could load.
Exit codes: 0 done, 1 a bug of ours, 2 a mistake that the message explains, 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import click

from hapi_tvm import __version__
from hapi_tvm.cli_board import board, targets
from hapi_tvm.cli_options import TRACEBACK, asked_sla, sla_options, traceback_option
from hapi_tvm.cli_search import search
from hapi_tvm.cli_target import asked_target, target_options
from hapi_tvm.errors import DataError, HapiError

__all__ = ["main"]

_EXAMPLE = "fashion-mnist"
_EXAMPLE_MODEL = Path(__file__).parent / "data" / "resnet56_fashion_mnist.onnx"


class _Commands(click.Group):
    """Turns errors into a line on stderr and an exit code, for every command alike."""

    def invoke(self, ctx: click.Context):
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except (KeyboardInterrupt, Exception) as error:
            if ctx.meta.get(TRACEBACK):
                traceback.print_exception(error)
            ctx.exit(_explain(error))


def _explain(error: BaseException) -> int:
    """Say on stderr what happened; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    if isinstance(error, HapiError | OSError):
        click.echo(f"error: {error}", err=True)
        return 2
    click.echo(f"internal error: {type(error).__name__}: {error}", err=True)
    click.echo("This is a bug in hapi-tvm: run again with --traceback and report it.", err=True)
    return 1


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__, prog_name="hapi-tvm")
def main():
    """Turn a trained CNN classifier into an early-exit network, compiled for one device."""


main.add_command(search)
main.add_command(board)
main.add_command(targets)


@main.command()
@click.argument("model")
@click.option(
    "--data", required=True, metavar="DATA", help="fashion-mnist, an .npz, or a folder of class folders."
)
@click.option(
    "--data-source",
    type=click.Choice(["auto", "embedded", "full"]),
    default="auto",
    show_default=True,
    help="Which copy of fashion-mnist.",
)
@click.option(
    "--run", "run_dir", required=True, type=click.Path(path_type=Path), help="Run folder; made or resumed."
)
@target_options
@sla_options
@click.option(
    "--trials",
    type=click.IntRange(min=0),
    default=256,
    show_default=True,
    help="Tuning trials in all; 0 takes the untuned schedules.",
)
@click.option(
    "--measure-budget",
    type=click.IntRange(min=1),
    metavar="K",
    help="Measure K kernels and predict the others; all are measured unless given.",
)
@click.option(
    "--spacing",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Least share of the FLOPs between two candidate exits.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=6, show_default=True, help="To train the exits."
)
@click.option(
    "--distillation",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the loss that follows the backbone's probabilities instead of the label.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--database",
    "database_dir",
    type=click.Path(path_type=Path),
    help="Folder of tuned kernels, which outlives the run.",
)
@click.option("--dump-ir", type=click.Path(path_type=Path), help="Write the module after every pass here.")
@click.option("-v", "--verbose", is_flag=True, help="Log details.")
@traceback_option
def build(
    model: str,
    data: str,
    data_source: str,
    run_dir: Path,
    trials: int,
    measure_budget: int | None,
    spacing: float,
    epochs: int,
    distillation: float,
    seed: int,
    database_dir: Path | None,
    dump_ir: Path | None,
    verbose: bool,
):
    """Build an early-exit network from MODEL.

    MODEL is an .onnx file, or "fashion-mnist" for the embedded example's ResNet-56.

    The SLA says what to optimise: an accuracy drop alone asks for the least latency, latencies alone ask
    for the most accuracy; without either, the drop is 0.01. A build that was stopped resumes, one with
    another SLA only searches and compiles again.
    """
    import hapi_tvm as hapi
    from hapi_tvm.progress import set_up_logging
    from hapi_tvm.report import read_report

    if data_source != "auto" and data != _EXAMPLE:
        raise click.UsageError(f"--data-source {data_source} chooses a copy of {_EXAMPLE}; --data is {data}")
    sla = asked_sla()
    set_up_logging(verbose)
    target = asked_target()
    hapi.build(
        hapi.import_model(_model_path(model)),
        hapi.load_dataset(data, source=data_source),
        target,
        sla=sla,
        run_dir=run_dir,
        trials=trials,
        measure_budget=measure_budget,
        spacing=spacing,
        epochs=epochs,
        distillation=distillation,
        seed=seed,
        database_dir=database_dir,
        dump_ir=dump_ir,
    )
    _print_summary(read_report(run_dir), run_dir / "report.html")


@main.command()
@click.argument("model")
@click.option(
    "--spacing",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Least share of the FLOPs between two candidate exits.",
)
@traceback_option
def inspect(model: str, spacing: float):
    """List where exits may stand in MODEL."""
    import hapi_tvm as hapi
    from hapi_tvm.exits import exit_graph
    from hapi_tvm.report.summary import candidates_table, print_table

    backbone = hapi.import_model(_model_path(model))
    graph = exit_graph(backbone, spacing=spacing)
    print_table(candidates_table(graph))
    shape = "x".join(str(size) for size in backbone.input_shape)
    click.echo(
        f"{backbone.name}: input {shape}, {backbone.classes} classes, {graph.backbone_flops:,} FLOPs, "
        f"{len(graph.candidates)} candidate exits"
    )


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("image", metavar="INPUT.npy", type=click.Path(path_type=Path))
@click.option(
    "--thresholds",
    metavar="T,T,...",
    callback=lambda ctx, parameter, text: _thresholds(text),
    help="One for each exit, in network order, instead of the design's; inf never fires.",
)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    default=30,
    show_default=True,
    help="The latency is the median of so many runs.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@traceback_option
def predict(artifact: Path, image: Path, thresholds: tuple[float, ...] | None, repeats: int, as_json: bool):
    """Classify one image with a compiled model.

    ARTIFACT is the model.so of a run folder. INPUT.npy holds one image [C, H, W]: float32 as
    the model takes it, or uint8.
    """
    import json
    import statistics
    import time

    import hapi_tvm as hapi

    array = _read_image(image)
    module = hapi.load(artifact)
    answer = module.predict(array, thresholds=thresholds)
    taken_us = []
    for _ in range(repeats):
        started_ns = time.perf_counter_ns()
        module.predict(array, thresholds=thresholds)
        taken_us.append((time.perf_counter_ns() - started_ns) / 1e3)
    median_us = statistics.median(taken_us)
    if as_json:
        result = {
            "label": int(answer.label),
            "confidence": float(answer.confidence),
            "exit": int(answer.exit),
            "exit_name": answer.exit_name,
            "probabilities": [float(p) for p in answer.probabilities],
            "latency_us": {"median": median_us, "samples": taken_us},
        }
        click.echo(json.dumps(result))
        return
    click.echo(f"label       {answer.label}")
    click.echo(f"confidence  {answer.confidence:.4f}")
    click.echo(f"exit        {answer.exit_name} ({answer.exit})")
    click.echo(f"latency     {median_us:.0f} µs (median of {repeats})")


@main.command()
@click.argument("run_dir", metavar="RUN", type=click.Path(path_type=Path))
@traceback_option
def report(run_dir: Path):
    """Print the summary of a run folder.

    Renders its report.html again, from its report.json.
    """
    from hapi_tvm.report import read_report, write_page

    found = read_report(run_dir)
    _print_summary(found, write_page(run_dir, found))


def _model_path(model: str) -> Path:
    """Path of the ONNX file, or of the embedded example's."""
    return _EXAMPLE_MODEL if model == _EXAMPLE else Path(model)


def _thresholds(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 0.9,0.85,inf") from None


def _read_image(path: Path):
    import numpy as np

    try:
        return np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; save the image with numpy.save") from None
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path} is no .npy file ({error}); save the image with numpy.save") from None


def _print_summary(found, page: Path) -> None:
    from hapi_tvm.report.summary import print_table, summary

    print_table(summary(found))
    click.echo(f"report: {page}")


if __name__ == "__main__":
    sys.exit(main(prog_name="hapi-tvm"))
