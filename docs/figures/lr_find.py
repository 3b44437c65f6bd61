"""A learning-rate range test whose curve does not rise at the end.

Drawn by `OMP_NUM_THREADS=1 python -m docs.figures lr-find`: with more threads the last bits differ, and then the curve.
"""

import pathlib
from typing import Any

import torch
import torch.nn.functional as F

import gradops
from docs.figures.trainings import SEED, task
from gradops.demo.network import ResidualNet


def draw(path: pathlib.Path) -> dict[str, Any]:
    """The network without normalisation under AdamW: it dies on the way, and its loss is then that of guessing."""
    torch.manual_seed(SEED)
    network = ResidualNet()
    train = task(0.01).train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(SEED))
    loader = [train.batch(index) for index in order.split(64)]
    optimizer = gradops.AdamW(network.named_parameters(), max_norm=0.3)
    curve = gradops.lr_find(network, optimizer, F.binary_cross_entropy_with_logits, loader)
    curve.plot(path)
    return {"suggestion": curve.suggestion, "steps": len(curve.steps), "notes": curve.notes()}
