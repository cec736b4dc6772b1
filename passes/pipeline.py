"""The compiler's path from a backbone to one executable, as lists of passes."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import tvm
from tvm import relax
from tvm.ir.instrument import DumpIR

from hapi_tvm.passes.attach_exits import AttachExits, BranchWeights
from hapi_tvm.passes.attach_manifest import AttachManifest
from hapi_tvm.passes.blocked_layout import BlockedLayout
from hapi_tvm.passes.cut_segments import CutSegments
from hapi_tvm.passes.drop_exits import DropExits
from hapi_tvm.passes.inline_pieces import InlinePieces
from hapi_tvm.passes.lower_segments import LowerSegments
from hapi_tvm.passes.plan_memory import PlanMemory
from hapi_tvm.passes.route import Route
from hapi_tvm.passes.stamp_calls import StampCalls
from hapi_tvm.passes.winograd import ConvolutionShape
from hapi_tvm.records import Option


def lower_everything(
    backbone: tvm.IRModule,
    tensors: Sequence[str],
    weights: Mapping[Option, BranchWeights],
    target: tvm.target.Target,
    vector_width: int,
    dump_dir: pathlib.Path | None = None,
) -> tvm.IRModule:
    """The backbone with every candidate branch, as segments and branches made of kernels.

    tensors: the variable of each candidate. weights: of each option, as AttachExits takes them.
    vector_width: float32 lanes; 1, as of a GPU's thread, leaves every tensor in NCHW. dump_dir: where to write the
    IR after each pass. Every convolution is summed directly.
    """
    return lower_pieces(cut(backbone, tensors, weights, target, vector_width, dump_dir), target, dump_dir=dump_dir)


def cut(
    backbone: tvm.IRModule,
    tensors: Sequence[str],
    weights: Mapping[Option, BranchWeights],
    target: tvm.target.Target,
    vector_width: int,
    dump_dir: pathlib.Path | None = None,
) -> tvm.IRModule:
    """The first half of ``lower_everything``: segments and branches made of operators, in their layouts."""
    return _run(
        [
            # One over-provisioned function.
            AttachExits(tensors, weights),
            # Layouts, chosen before cutting: what crosses a cut stays blocked.
            BlockedLayout(vector_width),
            # Functions.
            CutSegments(len(tensors), list(weights)),
        ],
        backbone,
        target,
        dump_dir,
    )


def lower_pieces(
    pieces: tvm.IRModule,
    target: tvm.target.Target,
    winograd_tiles: Mapping[ConvolutionShape, int] = MappingProxyType({}),
    dump_dir: pathlib.Path | None = None,
) -> tvm.IRModule:
    """The second half: what ``cut`` returns, made of kernels. winograd_tiles: as LowerSegments takes them."""
    return _run([LowerSegments(winograd_tiles)], pieces, target, dump_dir)


def assemble(
    lowered: tvm.IRModule,
    kept: Sequence[Option],
    manifest: str,
    target: tvm.target.Target,
    dump_dir: pathlib.Path | None = None,
) -> tvm.IRModule:
    """A design: the branches in ``kept``, merged segments, the router and the manifest."""
    return _run([DropExits(kept), Route(target), AttachManifest(manifest)], lowered, target, dump_dir)


def to_virtual_machine() -> tvm.transform.Pass:
    """What ``tvm.compile`` runs on a lowered module; its default would legalise and fuse the router too."""
    return tvm.transform.Sequential(
        [
            # One function for a whole run.
            InlinePieces(),
            # Destination passing.
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            # Only where pieces are to be timed on a board.
            StampCalls(),
            # Memory.
            PlanMemory(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            # Virtual machine.
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            relax.transform.AttachGlobalSymbol(),
        ]
    )


def _run(
    passes: list[tvm.transform.Pass],
    module: tvm.IRModule,
    target: tvm.target.Target,
    dump_dir: pathlib.Path | None,
) -> tvm.IRModule:
    instruments = [] if dump_dir is None else [DumpIR(dump_dir)]
    with target, tvm.transform.PassContext(opt_level=3, instruments=instruments):
        return tvm.transform.Sequential(passes)(module)
