"""What every branch and the backbone answer on a split: the table that the search works on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import tvm

from hapi_tvm.datasets import Split
from hapi_tvm.importing import Backbone
from hapi_tvm.passes.attach_exits import AttachExits, BranchWeights
from hapi_tvm.progress import bar
from hapi_tvm.records import CalibrationTable, ExitGraph, Option
from hapi_tvm.reference import RESULT, TorchReference

BATCH = 256


def answer_all(
    backbone: Backbone,
    graph: ExitGraph,
    weights: Mapping[Option, BranchWeights],
    split: Split,
    name: str,
) -> CalibrationTable:
    """Run the over-provisioned network over ``split`` in torch. name: of the split.

    It is the network that gets compiled, before any layout is chosen; no training module takes part.
    """
    tensors = [candidate.tensor for candidate in graph.candidates]
    module: tvm.IRModule = AttachExits(tensors, weights)(backbone.module)
    reference = TorchReference(module, channels_last=True)
    confidence, prediction = [], []
    with bar(f"answer the {name} split", len(split)) as shown:
        for images, _ in split.batches(BATCH):
            outputs = reference.run(torch.from_numpy(images))[RESULT]
            confidence.append(torch.stack(outputs[1::2], dim=1).numpy())
            prediction.append(torch.stack([p.argmax(dim=1) for p in outputs[0::2]], dim=1).numpy())
            shown.advance(len(images))
    return CalibrationTable(
        split=name,
        options=tuple(weights),
        confidence=np.clip(np.concatenate(confidence), 0, 1).astype(np.float32),
        prediction=np.concatenate(prediction).astype(np.int32),
        label=split.labels.astype(np.int32),
    )
